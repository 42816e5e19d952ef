"""Checkpoints: a torch.distributed.checkpoint folder a step, whole or not there, for any number of processes.

`save` copies the state and returns; a thread writes the copy under a temporary name, flushes it to the disk, and
renames it when every process has written its part. What goes wrong there is raised by the next `save` or `wait`. A
damaged checkpoint is put aside and the one before it used. Random numbers have no state: all are drawn from (seed,
step).
"""

import json
import logging
import shutil
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint import state_dict_loader
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.optim import Optimizer

from dinov2.distributed import own_group, rank, world_size
from dinov2.params import InputError
from dinov2.records import DISK_FULL, write_json
from dinov2.train.checkpoint_files import METADATA, flush_folder, trouble_with, write_state
from dinov2.train.staging import Staging, State
from dinov2.trusted import check_private, make_private

logger = logging.getLogger(__name__)

ABOUT = "about.json"


class Checkpoints:
    """The checkpoints of one run in one folder; all methods are called by all processes together.

    with Checkpoints(...) as checkpoints: ...      # leaving it waits for the write that is under way
    """

    def __init__(self, folder: Path, *, fingerprint: str, num_kept: int) -> None:
        self.folder = folder
        self.fingerprint = fingerprint
        self.num_kept = num_kept
        self.held_s = 0.0
        """Seconds that `save` and `wait` have held their caller."""
        self._group = own_group()  # a thread's collectives must not mix with training's
        self._staging = Staging()
        self._writing: threading.Thread | None = None
        self._error: BaseException | None = None
        # One process saves by itself, which is meant. Not `catch_warnings`: that is not for threads.
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.wait()
            return
        try:
            self.wait()
        except Exception as also:  # the first error is the one to tell
            logger.warning("the last checkpoint could not be written either: %s", also)

    @property
    def has_failed(self) -> bool:
        """Whether this process knows that the write under way has failed; `wait`, on all processes, says how."""
        return self._error is not None

    def save(self, step: int, model: nn.Module, optimizers: dict[str, Optimizer], extra: dict[str, Any]) -> None:
        """Begin to write the state after `step` steps; it may change as soon as this returns.

        `extra` is plain data, e.g. counts. Waits for the write before it, and raises what that could not do. When all
        is written the oldest checkpoints go. Interrupted at any point, the earlier ones stay as they were.
        """
        self.wait()
        started = time.perf_counter()
        state, filled = self._staging.copy(_state(model, optimizers))
        about = {"fingerprint": self.fingerprint, "step": step, "extra": json.loads(json.dumps(extra))}
        self._writing = threading.Thread(
            target=self._write_in_thread, args=(state, filled, about), name="checkpoint", daemon=True
        )
        self._writing.start()
        self.held_s += time.perf_counter() - started

    def wait(self) -> None:
        """Return when the last save is on the disk; raises OSError if it could not be written, on all processes."""
        started = time.perf_counter()
        if self._writing is not None:
            self._writing.join()
        self._writing = None
        error, self._error = self._error, None
        self.held_s += time.perf_counter() - started
        if error is not None:
            raise error

    def complete(self) -> list[Path]:
        """Whole checkpoints, oldest first."""
        return sorted(path.parent for path in self.folder.glob(f"step-*/{ABOUT}") if not path.parent.suffix)

    def load_newest(self, model: nn.Module, optimizers: dict[str, Optimizer]) -> tuple[int, dict[str, Any]] | None:
        """Fill model and optimisers from the newest whole checkpoint; returns (steps done, extra) or None.

        What a killed process left unfinished is removed; a damaged checkpoint is renamed, told of, and the one before
        it is taken. Raises InputError if it was written by a run of other params, inputs or code version, or if others
        than this user could have written it: reading it runs what is pickled there.
        """
        self.wait()
        self._decide(self._remove_unfinished)
        while (newest := self._decide(self._newest_sound)) is not None:
            about = json.loads((newest / ABOUT).read_text())
            if about["fingerprint"] != self.fingerprint:
                raise InputError(
                    f"{newest} belongs to run {about['fingerprint']}, not to this one ({self.fingerprint}): its params "
                    f"or inputs differ; move {self.folder} away to start afresh"
                )
            state = _state(model, optimizers)
            try:
                no_dist = world_size() == 1
                state_dict_loader.load(state, checkpoint_id=newest, process_group=self._group, no_dist=no_dist)
            except CheckpointException as error:
                reason = "; ".join(str(cause) for cause, _ in error.failures.values())
                self._decide(lambda path=newest, reason=reason: _put_aside(path, reason))
                continue
            set_model_state_dict(model, state["model"], options=StateDictOptions(strict=True))
            for name, optimizer in optimizers.items():
                set_optimizer_state_dict(model, optimizer, state["optimizers"][name])
            return about["step"], about["extra"]
        return None

    def _remove_unfinished(self) -> None:
        for path in self.folder.glob("step-*.tmp"):
            shutil.rmtree(path)

    def _newest_sound(self) -> Path | None:
        """The newest checkpoint whose files are all there in full; those after it are put aside."""
        if self.folder.exists():
            check_private(self.folder)
        for path in sorted((path for path in self.folder.glob("step-*") if not path.suffix), reverse=True):
            reason = trouble_with(path, ABOUT)
            if reason is None:
                check_private(path)
                return path
            _put_aside(path, reason)
        return None

    def _write_in_thread(self, state: State, filled: Callable[[], None], about: dict[str, Any]) -> None:
        try:
            filled()
            self._write(state, about)
        except BaseException as error:  # raised again by `wait`, in the training thread
            self._error = error

    def _write(self, state: State, about: dict[str, Any]) -> None:
        """Write and publish; on a full disk once more in the place of the oldest checkpoint, if it is not the only."""
        final = self.folder / f"step-{about['step']:09d}"
        temporary = final.with_suffix(".tmp")
        try:
            self._write_once(state, about, temporary, final)
        except OSError as error:
            if error.errno not in DISK_FULL or not self._decide(self._give_up_oldest):
                raise
            logger.warning("%s: the disk is full; the oldest checkpoint was removed to write it again", final)
            self._write_once(state, about, temporary, final)
        self._decide(self._drop_old)

    def _write_once(self, state: State, about: dict[str, Any], temporary: Path, final: Path) -> None:
        self._decide(lambda: _make_empty(temporary))
        try:
            sizes = write_state(state, temporary, self._group)
            self._decide(lambda: _publish(temporary, final, {**about, "bytes": sizes}))
        except BaseException:
            if rank() == 0:
                shutil.rmtree(temporary, ignore_errors=True)
            raise

    def _give_up_oldest(self) -> bool:
        oldest = self.complete()[:-1][:1]
        for path in oldest:
            shutil.rmtree(path)
        return bool(oldest)

    def _drop_old(self) -> None:
        for old in self.complete()[: -self.num_kept]:
            shutil.rmtree(old)

    def _decide(self, act: Callable[[], Any]) -> Any:
        """What rank 0's `act` returns or raises, on all processes."""
        if self._group is None:
            return act()
        outcome: list[Any] = [None, None]
        if rank() == 0:
            try:
                outcome = [act(), None]
            except (OSError, InputError) as error:
                outcome = [None, error]
        dist.broadcast_object_list(outcome, src=0, group=self._group)
        if outcome[1] is not None:
            raise outcome[1]
        return outcome[0]


def full_state(model: nn.Module) -> dict[str, Any]:
    """All parameters and buffers, unsharded, on rank 0's CPU; empty on the other processes."""
    return dict(get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True)))


def _state(model: nn.Module, optimizers: dict[str, Optimizer]) -> State:
    return {
        "model": get_model_state_dict(model),
        "optimizers": {name: get_optimizer_state_dict(model, optimizer) for name, optimizer in optimizers.items()},
    }


def _make_empty(folder: Path) -> None:
    make_private(folder.parent)
    shutil.rmtree(folder, ignore_errors=True)
    make_private(folder)


def _publish(temporary: Path, final: Path, about: dict[str, Any]) -> None:
    about["bytes"][METADATA] = (temporary / METADATA).stat().st_size
    write_json(temporary / ABOUT, about)
    flush_folder(temporary)
    shutil.rmtree(final, ignore_errors=True)
    temporary.rename(final)
    flush_folder(final.parent)


def _put_aside(path: Path, reason: str) -> None:
    aside = path.with_suffix(".damaged")
    shutil.rmtree(aside, ignore_errors=True)
    path.rename(aside)
    logger.warning("%s is damaged (%s): it is now %s, and the one before it is used", path, reason, aside.name)

