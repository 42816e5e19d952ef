"""Checkpoints: whole or not there, only the newest, only one's own; damage, full disks, kills, other world sizes."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import ranks
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from dinov2.distributed import world_size
from dinov2.params import InputError
from dinov2.train import checkpoint_files
from dinov2.train.checkpoint import Checkpoints, full_state


def trained(seed: int) -> tuple[nn.Module, dict[str, torch.optim.Optimizer]]:
    torch.manual_seed(seed)
    model = nn.ModuleDict({"student": nn.Linear(3, 2), "teacher": nn.Linear(3, 2).requires_grad_(False)})
    optimizer = torch.optim.AdamW([{"params": model["student"].parameters(), "lr_multiplier": 0.5}], lr=0.1)
    model["student"](torch.ones(1, 3)).sum().backward()
    optimizer.step()
    return model, {"": optimizer}


def saved(
    folder: Path, step: int, model: nn.Module, optimizers: dict[str, torch.optim.Optimizer], extra: dict[str, Any]
) -> Path:
    """A checkpoint that is on the disk."""
    with Checkpoints(folder, fingerprint="a", num_kept=2) as checkpoints:
        checkpoints.save(step, model, optimizers, extra)
    return folder / f"step-{step:09d}"


def test_load_newest_brings_back_weights_and_optimizer(tmp_path: Path) -> None:
    model, optimizers = trained(0)
    saved(tmp_path, 7, model, optimizers, {"skipped": {"": 1}})
    other, other_optimizers = trained(1)
    loaded = Checkpoints(tmp_path, fingerprint="a", num_kept=2).load_newest(other, other_optimizers)
    assert loaded == (7, {"skipped": {"": 1}})
    for name, value in full_state(model).items():
        assert torch.equal(value, full_state(other)[name])
    for left, right in zip(
        optimizers[""].state_dict()["state"].values(), other_optimizers[""].state_dict()["state"].values(), strict=True
    ):
        assert torch.equal(left["exp_avg"], right["exp_avg"])
        assert torch.equal(left["step"], right["step"])
    assert other_optimizers[""].param_groups[0]["lr_multiplier"] == 0.5


def test_save_keeps_the_newest(tmp_path: Path) -> None:
    model, optimizers = trained(0)
    checkpoints = Checkpoints(tmp_path, fingerprint="a", num_kept=2)
    for step in (1, 2, 10):
        checkpoints.save(step, model, optimizers, {})
    checkpoints.wait()
    assert [path.name for path in checkpoints.complete()] == ["step-000000002", "step-000000010"]


def test_load_newest_passes_over_an_unfinished_one(tmp_path: Path) -> None:
    model, optimizers = trained(0)
    checkpoints = Checkpoints(tmp_path, fingerprint="a", num_kept=2)
    checkpoints.save(1, model, optimizers, {})
    checkpoints.wait()
    (tmp_path / "step-000000002.tmp").mkdir()
    (tmp_path / "step-000000002.tmp" / "about.json").write_text("{}")
    loaded = checkpoints.load_newest(model, optimizers)
    assert loaded is not None
    assert loaded[0] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["step-000000001"]


def test_load_newest_refuses_another_run_s(tmp_path: Path) -> None:
    model, optimizers = trained(0)
    saved(tmp_path, 1, model, optimizers, {})
    with pytest.raises(InputError, match=r"belongs to run a, not to this one \(b\)"):
        Checkpoints(tmp_path, fingerprint="b", num_kept=2).load_newest(model, optimizers)


def test_load_newest_without_any_is_none(tmp_path: Path) -> None:
    assert Checkpoints(tmp_path, fingerprint="a", num_kept=2).load_newest(*trained(0)) is None


def test_training_on_while_a_save_is_written_changes_nothing_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, optimizers = trained(0)
    now = saved(tmp_path / "sync", 1, model, optimizers, {})
    write = checkpoint_files.state_dict_saver.save

    def slow(*args: Any, **kwargs: Any) -> Any:  # a slow disk
        time.sleep(0.3)
        return write(*args, **kwargs)

    monkeypatch.setattr(checkpoint_files.state_dict_saver, "save", slow)
    extra = {"skipped": {"": 1}}
    with Checkpoints(tmp_path / "async", fingerprint="a", num_kept=2) as checkpoints:
        checkpoints.save(1, model, optimizers, extra)
        assert checkpoints.held_s < 0.2
        for _ in range(3):
            model["student"](torch.ones(1, 3)).sum().backward()  # pyright: ignore[reportIndexIssue]
            optimizers[""].step()
        extra["skipped"][""] = 2
        assert not checkpoints.complete()
    other = tmp_path / "async" / "step-000000001"
    assert (other / "__0_0.distcp").read_bytes() == (now / "__0_0.distcp").read_bytes()
    assert json.loads((other / "about.json").read_text())["extra"] == {"skipped": {"": 1}}


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


@pytest.mark.parametrize("name", ["about.json", ".metadata", "__0_0.distcp"])
@pytest.mark.parametrize("damage", [cut, Path.unlink])
def test_damaged_newest_is_put_aside_and_the_one_before_it_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, damage: Callable[[Path], None]
) -> None:
    model, optimizers = trained(0)
    for step in (1, 2):
        folder = saved(tmp_path, step, model, optimizers, {})
    damage(folder / name)
    loaded = Checkpoints(tmp_path, fingerprint="a", num_kept=2).load_newest(*trained(1))
    assert loaded == (1, {})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000000001", "step-000000002.damaged"]
    assert name in caplog.text


def full_disk(monkeypatch: pytest.MonkeyPatch, is_full: Callable[[], bool]) -> None:
    """A disk that takes no more than the first bytes while `is_full`."""
    create = checkpoint_files.FileSystemWriter.write_data

    def write_data(self: Any, *args: Any, **kwargs: Any) -> Any:
        if is_full():
            (Path(self.path) / "__0_0.distcp").write_bytes(b"begun")
            try:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            finally:
                raise RuntimeError("unexpected pos 704 vs 598")
        return create(self, *args, **kwargs)

    monkeypatch.setattr(checkpoint_files.FileSystemWriter, "write_data", write_data)


def test_full_disk_leaves_the_newest_checkpoint_and_is_told_at_the_next_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, optimizers = trained(0)
    saved(tmp_path, 1, model, optimizers, {})
    full_disk(monkeypatch, lambda: True)
    checkpoints = Checkpoints(tmp_path, fingerprint="a", num_kept=3)
    checkpoints.save(2, model, optimizers, {})
    with pytest.raises(OSError, match="No space left") as told:
        checkpoints.wait()
    assert told.value.errno == errno.ENOSPC
    assert [path.name for path in tmp_path.iterdir()] == ["step-000000001"]
    assert checkpoints.load_newest(model, optimizers) == (1, {})


def test_full_disk_takes_the_place_of_the_oldest_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, optimizers = trained(0)
    for step in (1, 2):
        saved(tmp_path, step, model, optimizers, {})
    full_disk(monkeypatch, (tmp_path / "step-000000001").exists)
    with Checkpoints(tmp_path, fingerprint="a", num_kept=3) as checkpoints:
        checkpoints.save(3, model, optimizers, {})
    assert [path.name for path in checkpoints.complete()] == ["step-000000002", "step-000000003"]


KILLED = """
import sys
sys.path[:0] = {path!r}
from pathlib import Path
import torch
from test_checkpoint import trained
from dinov2.train.checkpoint import Checkpoints
model, optimizers = trained(0)
model["student"].register_buffer("large", torch.zeros(4_000_000))
checkpoints = Checkpoints(Path({work!r}), fingerprint="a", num_kept=2)
print("ready", flush=True)
for step in range(1, 10_000):
    checkpoints.save(step, model, optimizers, {{}})
"""


def test_kill_during_a_save_leaves_the_checkpoints_before_it(tmp_path: Path, repository: Path) -> None:
    path = [str(repository), str(repository / "tests"), str(repository / "tests/train")]
    code = KILLED.format(path=path, work=str(tmp_path))
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.readline()
    model, optimizers = trained(1)
    model["student"].register_buffer("large", torch.zeros(4_000_000))  # pyright: ignore[reportIndexIssue]
    checkpoints = Checkpoints(tmp_path, fingerprint="a", num_kept=2)
    while not (checkpoints.complete() and list(tmp_path.glob("*.tmp"))):
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert checkpoints.load_newest(model, optimizers) is not None
    assert not list(tmp_path.glob("*.tmp"))
    assert not list(tmp_path.glob("*.damaged"))


SHARDED = """
from test_checkpoint import check_loaded, sharded, saved
from dinov2.train.checkpoint import Checkpoints
model, optimizers = sharded(0)
saved(work / f"of-{{world_size()}}", 5, model, optimizers, {{}})
for folder in {folders!r}:
    check_loaded(work / folder)
"""


def sharded(seed: int) -> tuple[nn.Module, dict[str, torch.optim.Optimizer]]:
    """As `trained`, spread over the processes there are, from the same weights and gradients whatever their number."""
    torch.manual_seed(seed)
    model = nn.ModuleDict({"student": nn.Linear(6, 5), "teacher": nn.Linear(6, 5).requires_grad_(False)})
    if world_size() > 1:
        for part in model.values():
            fully_shard(part, mesh=init_device_mesh("cpu", (world_size(),)))
    optimizer = torch.optim.AdamW(model["student"].parameters(), lr=0.1)
    model["student"](torch.full((1, 6), 0.1 + seed)).sum().backward()
    optimizer.step()
    return model, {"": optimizer}


def check_loaded(folder: Path) -> None:
    """What lies in `folder` is the state of `sharded(0)`, loaded over another one."""
    wanted, (model, optimizers) = sharded(0), sharded(1)
    assert Checkpoints(folder, fingerprint="a", num_kept=2).load_newest(model, optimizers) == (5, {})
    for left, right in zip(wanted[0].parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(left, right)
    states = zip(wanted[1][""].state.values(), optimizers[""].state.values(), strict=True)
    for left, right in states:
        for name in ("exp_avg", "exp_avg_sq", "step"):
            torch.testing.assert_close(left[name], right[name])


@pytest.mark.slow
def test_checkpoints_go_from_any_number_of_processes_to_any_other(tmp_path: Path) -> None:
    saved(tmp_path / "of-1", 5, *sharded(0), {})
    four = ranks.finish(ranks.start(SHARDED.format(folders=[]), 4, tmp_path))
    two = ranks.finish(ranks.start(SHARDED.format(folders=["of-1", "of-4"]), 2, tmp_path))
    assert [code for code, _ in [*four, *two]] == [0] * 6, [*four, *two]
    check_loaded(tmp_path / "of-2")
    check_loaded(tmp_path / "of-4")
