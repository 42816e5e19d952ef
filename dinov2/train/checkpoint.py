"""Checkpoints: a torch.distributed.checkpoint folder a step, whole or not there, for any number of processes.

A checkpoint is written under a temporary name and renamed when every process has written its part. Random numbers have
no state to save: all of them are drawn from (seed, step).
"""

import json
import logging
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint import state_dict_loader, state_dict_saver
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.optim import Optimizer

from dinov2.distributed import rank, world_size
from dinov2.params import InputError
from dinov2.records import write_json

logger = logging.getLogger(__name__)

ABOUT = "about.json"


class Checkpoints:
    """The checkpoints of one run in one folder; all methods are called by all processes together."""

    def __init__(self, folder: Path, *, fingerprint: str, num_kept: int) -> None:
        self.folder = folder
        self.fingerprint = fingerprint
        self.num_kept = num_kept

    def save(self, step: int, model: nn.Module, optimizers: dict[str, Optimizer], extra: dict[str, Any]) -> Path:
        """Write the state after `step` steps, then drop the oldest checkpoints; returns the folder.

        `extra` is plain data, e.g. counts. Interrupted at any point, the earlier checkpoints stay as they were.
        """
        final = self.folder / f"step-{step:09d}"
        temporary = final.with_suffix(".tmp")
        if rank() == 0:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
        _barrier()
        with _quiet():
            state_dict_saver.save(_state(model, optimizers), checkpoint_id=temporary, no_dist=world_size() == 1)
        if rank() == 0:
            write_json(temporary / ABOUT, {"fingerprint": self.fingerprint, "step": step, "extra": extra})
            shutil.rmtree(final, ignore_errors=True)
            temporary.rename(final)
            for old in self.complete()[: -self.num_kept]:
                shutil.rmtree(old)
        _barrier()
        return final

    def complete(self) -> list[Path]:
        """Whole checkpoints, oldest first."""
        return sorted(path.parent for path in self.folder.glob(f"step-*/{ABOUT}") if not path.parent.suffix)

    def load_newest(self, model: nn.Module, optimizers: dict[str, Optimizer]) -> tuple[int, dict[str, Any]] | None:
        """Fill model and optimisers from the newest whole checkpoint; returns (steps done, extra) or None.

        Raises InputError if it was written by a run of other params, inputs or code version.
        """
        checkpoints = self.complete()
        if not checkpoints:
            return None
        newest = checkpoints[-1]
        about = json.loads((newest / ABOUT).read_text())
        if about["fingerprint"] != self.fingerprint:
            raise InputError(
                f"{newest} belongs to run {about['fingerprint']}, not to this one ({self.fingerprint}): its params or "
                f"inputs differ; move {self.folder} away to start afresh"
            )
        state = _state(model, optimizers)
        with _quiet():
            state_dict_loader.load(state, checkpoint_id=newest, no_dist=world_size() == 1)
        set_model_state_dict(model, state["model"], options=StateDictOptions(strict=True))
        for name, optimizer in optimizers.items():
            set_optimizer_state_dict(model, optimizer, state["optimizers"][name])
        return about["step"], about["extra"]


def full_state(model: nn.Module) -> dict[str, Any]:
    """All parameters and buffers, unsharded, on rank 0's CPU; empty on the other processes."""
    return dict(get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True)))


def _state(model: nn.Module, optimizers: dict[str, Optimizer]) -> dict[str, Any]:
    return {
        "model": get_model_state_dict(model),
        "optimizers": {name: get_optimizer_state_dict(model, optimizer) for name, optimizer in optimizers.items()},
    }


def _barrier() -> None:
    if world_size() > 1:
        dist.barrier()


@contextmanager
def _quiet() -> Iterator[None]:
    """Without PyTorch's warning that one process saves by itself, which is meant."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield
