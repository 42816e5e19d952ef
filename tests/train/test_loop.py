"""The loop: resumed equals uninterrupted, two processes equal one, signals, and steps that are not finite."""

import io
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ranks
import torch
from PIL import Image

from dinov2.data.params import CropParams, MaskParams
from dinov2.models.params import HeadParams, ViTParams
from dinov2.train.curves import read_rows, write_csv
from dinov2.train.learning import Pretraining
from dinov2.train.loop import DivergedError, train
from dinov2.train.optim import LossScale
from dinov2.train.params import (
    EfficiencyParams,
    LossParams,
    OptimParams,
    RecipeParams,
    ScheduleParams,
    WatchParams,
)
from dinov2.train.student_teacher import StudentTeacher
from dinov2.train.watchdog import STALLED

HEAD = HeadParams(num_prototypes=16, hidden_dim=16, bottleneck_dim=8, num_layers=2)
MODEL = ViTParams(
    patch_size=8, dim=16, depth=2, heads=2, ffn="mlp", num_registers=0, layerscale=0.1, drop_path=0.3,
    image_size_px=32, interpolate_offset=0.0, interpolate_antialias=False,
)  # fmt: skip
RECIPE = RecipeParams(
    seed=0,
    crops=CropParams(
        global_size_px=32, global_scale=(0.32, 1.0), local_size_px=16, local_scale=(0.05, 0.32), num_local=2,
        blur="reference", jitter_probability=0.8, brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1,
        grayscale_probability=0.2, solarize_probability=0.2,
    ),
    masks=MaskParams(probability=0.5, ratio_min=0.1, ratio_max=0.5),
    loss=LossParams(
        dino_weight=1.0, ibot_weight=1.0, koleo_weight=0.1, centering="softmax", sinkhorn_iterations=3,
        center_momentum=0.9, student_temperature=0.1,
    ),
    optim=OptimParams(
        base_lr=1e-2, beta1=0.9, beta2=0.999, layerwise_decay=0.9, patch_embed_lr_multiplier=0.2, clip_norm=3.0
    ),
    schedule=ScheduleParams(
        warmup_steps=2, min_lr=1e-6, weight_decay_start=0.04, weight_decay_end=0.2, momentum_start=0.9,
        momentum_end=1.0, teacher_temperature_start=0.04, teacher_temperature_end=0.07,
        teacher_temperature_warmup_steps=3, freeze_last_layer_steps=1, freeze_backbone_steps=0,
    ),
    batch_size=8, group_size=4, num_steps=6, checkpoint_every_steps=3, keep_checkpoints=2, log_every_steps=1,
    efficiency=EfficiencyParams(
        precision="fp32", attention="sdpa", compile=False, recompute="none", num_micro_batches=1, shard_processes=None
    ),
    watch=WatchParams(
        every_steps=3, images=6, min_effective_rank=None, max_chance_steps=None, max_skipped_in_a_row=5, max_dumps=3,
        stall_s=None,
    ),
)  # fmt: skip


class Pictures:
    """Twelve small images of three classes; `on_read` is called with the number of images read so far."""

    def __init__(self, on_read: Callable[[int], None] = lambda num: None) -> None:
        self.on_read = on_read
        self.num_read = 0

    def __len__(self) -> int:
        return 12

    def read(self, i: int) -> bytes:
        self.num_read += 1
        self.on_read(self.num_read)
        buffer = io.BytesIO()
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(buffer, "PNG")
        return buffer.getvalue()

    def id(self, i: int) -> str:
        return str(i)

    def label(self, i: int) -> str | None:
        return "abc"[i % 3]

    def fingerprint(self) -> str:
        return "fixed"


def pair(recipe: RecipeParams = RECIPE) -> StudentTeacher:
    torch.manual_seed(0)
    return StudentTeacher(MODEL, HEAD, HEAD, recipe.loss, group_size=recipe.group_size, attention="sdpa")


def run(work: Path, recipe: RecipeParams = RECIPE, source: Pictures | None = None) -> StudentTeacher:
    trained = pair(recipe)
    train(
        Pretraining(trained), recipe, source or Pictures(), patch_size=8, work=work, fingerprint="f",
        device=torch.device("cpu"),
    )  # fmt: skip
    return trained


class KilledError(BaseException):
    """Stands for the end of the process."""


def test_resumed_run_equals_uninterrupted_bit_for_bit(tmp_path: Path) -> None:
    def kill(num: int) -> None:
        if num > 6 + 5 * 8:  # the sample of the monitor, then five batches
            raise KilledError

    whole = run(tmp_path / "whole")
    with pytest.raises(KilledError):
        run(tmp_path / "killed", source=Pictures(kill))
    assert [path.name for path in (tmp_path / "killed/checkpoints").iterdir()] == ["step-000000003"]
    resumed = run(tmp_path / "killed")
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    for place in ("whole", "killed"):
        write_csv(tmp_path / f"{place}.csv", read_rows(tmp_path / place / "metrics.jsonl"))
    assert (tmp_path / "whole.csv").read_bytes() == (tmp_path / "killed.csv").read_bytes()
    assert len((tmp_path / "killed/metrics.jsonl").read_text().splitlines()) > 6  # some steps twice


def test_finished_run_is_not_trained_again(tmp_path: Path) -> None:
    first = run(tmp_path)
    untouched = Pictures()
    again = run(tmp_path, source=untouched)
    assert untouched.num_read == 0
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in first.state_dict().items())


def test_signal_saves_at_the_next_step_then_calls_the_launcher_s_handler(tmp_path: Path) -> None:
    def send(num: int) -> None:
        if num == 6 + 1:
            os.kill(os.getpid(), signal.SIGUSR2)

    def requeue(number: int, frame: object) -> None:
        raise KilledError

    previous = signal.signal(signal.SIGUSR2, requeue)
    try:
        with pytest.raises(KilledError):
            run(tmp_path, source=Pictures(send))
        assert signal.getsignal(signal.SIGUSR2) is requeue
    finally:
        signal.signal(signal.SIGUSR2, previous)
    saved = list((tmp_path / "checkpoints").iterdir())
    assert len(saved) == 1
    assert json.loads((saved[0] / "about.json").read_text())["step"] < 3


def test_loss_that_stays_not_finite_ends_the_run_with_a_sentence(tmp_path: Path) -> None:
    broken = pair()
    with torch.no_grad():
        broken.get_parameter("student.backbone.cls_token").fill_(float("nan"))
    before = {name: value.clone() for name, value in broken.state_dict().items()}
    with pytest.raises(DivergedError, match=r"total.* not finite at step 5 on rank 0, 5 steps in a row"):
        train(
            Pretraining(broken), RECIPE, Pictures(), patch_size=8, work=tmp_path, fingerprint="f",
            device=torch.device("cpu"),
        )  # fmt: skip
    for name, value in broken.named_parameters():
        assert torch.equal(value.nan_to_num(7.0), before[name].nan_to_num(7.0)), name
    names = [path.name for path in sorted((tmp_path / "not_finite").iterdir())]
    assert names == ["step-000000001", "step-000000002", "step-000000003"]


def recipe_with(**changes: Any) -> RecipeParams:
    """Three steps with Sinkhorn over groups of two; `changes` are of its efficiency."""
    loss = RECIPE.loss.model_copy(update={"centering": "sinkhorn"})
    efficiency = RECIPE.efficiency.model_copy(update=changes)
    return RECIPE.model_copy(update={"num_steps": 3, "group_size": 2, "loss": loss, "efficiency": efficiency})


def assert_same_curves(one: Path, other: Path) -> None:
    rows = [read_rows(work / "metrics.jsonl") for work in (one, other)]
    assert len(rows[0]) == 3
    for left, right in zip(*rows, strict=True):
        for key in ("total", "dino_local", "dino_global", "ibot", "koleo", "grad_norm_backbone", "effective_rank"):
            if key in left:
                assert right[key] == pytest.approx(left[key], rel=1e-5), (left["step"], key)


@pytest.mark.parametrize(("num", "shard_processes"), [(2, None), (4, None), (4, 2)])
def test_several_processes_equal_one(num: int, shard_processes: int | None, tmp_path: Path) -> None:
    code = f"from test_loop import recipe_with, run\nrun(work, recipe_with(shard_processes={shard_processes}))"
    processes = ranks.start(code, num, tmp_path / "many")
    recipe = recipe_with(shard_processes=shard_processes)
    one = run(tmp_path / "one", recipe)
    assert [code for code, _ in ranks.finish(processes)] == [0] * num
    assert_same_curves(tmp_path / "one", tmp_path / "many")
    resumed = run(tmp_path / "many", recipe)  # the checkpoint of several processes, on one
    for name, value in one.state_dict().items():
        torch.testing.assert_close(resumed.state_dict()[name], value, atol=2e-5, rtol=1e-4, msg=name)


def test_micro_batches_equal_one_batch(tmp_path: Path) -> None:
    run(tmp_path / "whole", recipe_with())
    run(tmp_path / "parts", recipe_with(num_micro_batches=4))
    assert_same_curves(tmp_path / "whole", tmp_path / "parts")


def test_processes_that_do_not_divide_the_batch_are_refused(tmp_path: Path) -> None:
    ended = ranks.finish(ranks.start("from test_loop import recipe_with, run\nrun(work, recipe_with())", 3, tmp_path))
    for _, said in ended:
        assert "batch_size 8 does not divide into 3 processes of whole groups of 2" in said.splitlines()[-1]


def test_half_precision_finds_its_loss_scale_and_resumes_bit_for_bit(tmp_path: Path) -> None:
    def kill(num: int) -> None:
        if num > 6 + 2 * 8:
            raise KilledError

    recipe = recipe_with(precision="fp16").model_copy(update={"num_steps": 12, "checkpoint_every_steps": 1})
    whole = run(tmp_path / "whole", recipe)
    with pytest.raises(KilledError):
        run(tmp_path / "killed", recipe, Pictures(kill))
    resumed = run(tmp_path / "killed", recipe)
    assert all(torch.equal(value, resumed.state_dict()[name]) for name, value in whole.state_dict().items())
    scales = [row["loss_scale"] for row in read_rows(tmp_path / "killed/metrics.jsonl")]
    assert scales == [row["loss_scale"] for row in read_rows(tmp_path / "whole/metrics.jsonl")]
    assert scales[0] == LossScale.START
    assert read_rows(tmp_path / "whole/metrics.jsonl")[-1]["grad_norm_backbone"] > 0


HIT = """
import os, signal
from test_loop import RECIPE, Pictures, run
def hit(num):
    if rank() == 1 and num == 6 + 4 * 4:  # the monitor's sample, then four images a step
        os.kill(os.getpid(), signal.{signal})
watch = RECIPE.watch.model_copy(update=dict(stall_s=10.0))
run(work, RECIPE.model_copy(update=dict(num_steps=1000, checkpoint_every_steps=1000, watch=watch)), Pictures(hit))
"""


def test_signal_to_one_of_two_processes_saves_the_same_step_on_both(tmp_path: Path) -> None:
    ended = ranks.finish(ranks.start(HIT.format(signal="SIGUSR2"), 2, tmp_path))
    assert [code for code, _ in ended] == [-signal.SIGUSR2, -signal.SIGUSR2]
    (saved,) = (tmp_path / "checkpoints").iterdir()
    about = json.loads((saved / "about.json").read_text())
    assert about["step"] == read_rows(tmp_path / "metrics.jsonl")[-1]["step"]  # no finished step is lost
    assert {"__0_0.distcp", "__1_0.distcp"} <= about["bytes"].keys()


def test_killed_process_ends_the_other_with_a_sentence(tmp_path: Path) -> None:
    ended = ranks.finish(ranks.start(HIT.format(signal="SIGKILL"), 2, tmp_path), timeout_s=30)
    assert ended[1][0] == -signal.SIGKILL
    assert ended[0][0] == 1
    assert "process 0 of 2 lost another one" in ended[0][1].splitlines()[-1]


@pytest.mark.slow
def test_process_that_hangs_ends_the_other_by_its_watchdog(tmp_path: Path) -> None:
    waiting, hanging = ranks.start(HIT.format(signal="SIGSTOP"), 2, tmp_path)
    try:
        assert waiting.wait(timeout=60) == STALLED
    finally:
        hanging.kill()
        hanging.communicate()
    assert waiting.communicate()[1].count("while waiting for the step") == 1
