"""Checkpoints: whole or not there, only the newest, only one's own."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from dinov2.params import InputError
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
