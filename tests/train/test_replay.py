"""A step that was not finite is dumped and run again by one command, which says where it began."""

from pathlib import Path

import pytest
import ranks
import torch
from test_loop import RECIPE, Pictures, pair

from dinov2.data.collate import RawBatch
from dinov2.train.dump import read_dump
from dinov2.train.learning import Pretraining
from dinov2.train.loop import DivergedError, train
from dinov2.train.replay import main

BROKEN = "student.backbone.blocks.1.mlp.fc1.bias"


def diverge(work: Path) -> Path:
    """The first dump of a run whose student has a NaN in one bias."""
    broken = pair()
    with torch.no_grad():
        broken.get_parameter(BROKEN)[3] = float("nan")
    with pytest.raises(DivergedError, match=r"dinov2\.train\.replay"):
        train(
            Pretraining(broken), RECIPE, Pictures(), patch_size=8, work=work, fingerprint="f",
            device=torch.device("cpu"),
        )  # fmt: skip
    return work / "not_finite" / "step-000000001"


def test_replay_names_the_first_module_and_fails_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = diverge(tmp_path)
    assert main([str(folder), "--device", "cpu"]) == 0
    said = capsys.readouterr().out
    assert f"weights: {BROKEN} was not finite before the step: 1 NaN" in said
    assert "first output that is not finite: student.backbone.blocks.1.mlp.fc1 (Linear)" in said
    assert "global crops [2, 8, 3, 32, 32]: from -" in said
    assert "differs" not in said
    assert said.splitlines()[-1] == "reproduced: it fails again"


def test_replay_of_sound_weights_says_that_it_does_not_fail(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = diverge(tmp_path)
    weights = torch.load(folder / "weights.pt", weights_only=True)
    weights[BROKEN].nan_to_num_()
    for name in ("targeting.dino_center", "targeting.ibot_center"):
        assert torch.isfinite(weights[name]).all()  # the teacher was sound
    torch.save(weights, folder / "weights.pt")
    assert main([str(folder), "--device", "cpu"]) == 0
    said = capsys.readouterr().out
    assert "first output" not in said
    assert said.splitlines()[-1].startswith("not reproduced")


@pytest.mark.parametrize("name", ["about.json", "weights.pt", "batch-0.pt"])
def test_replay_of_a_folder_that_is_no_dump_is_told_in_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    folder = diverge(tmp_path)
    (folder / name).write_bytes((folder / name).read_bytes()[:20])
    assert main([str(folder), "--device", "cpu"]) == 2
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 1
    assert "is no whole dump of a step" in told[0]


TWO = """
from test_replay import diverge
diverge(work)
"""


def tensors(raw: RawBatch) -> list[torch.Tensor]:
    return [raw.global_crops, raw.local_crops, raw.masks, *(part for colours in raw.colours for part in colours)]


@pytest.mark.slow
def test_batches_of_two_processes_join_to_the_one_of_one(tmp_path: Path) -> None:
    ended = ranks.finish(ranks.start(TWO, 2, tmp_path / "two"))
    assert [code for code, _ in ended] == [0, 0], ended
    two, one = (read_dump(folder) for folder in (tmp_path / "two/not_finite/step-000000001", diverge(tmp_path / "one")))
    assert two.about["world_size"] == 2
    for left, right in zip(tensors(one.raw), tensors(two.raw), strict=True):
        assert torch.equal(left, right)
    assert two.raw.group_seeds == one.raw.group_seeds
    assert two.weights.keys() == one.weights.keys()
