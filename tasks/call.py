"""One call of one stage: its identity, its folder, and the job that does its work."""

import hashlib
import json
import logging
import os
import shutil
import sys
import time
import traceback
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from dinov2.params import InputError, Params
from dinov2.records import DISK_FULL, Summary, flush_files
from dinov2.store import Store, StoreParams
from dinov2.store.locking import in_use
from dinov2.workspace import workspace
from tasks.damage import damage_forgotten
from tasks.fan_out import Share, make_parts, named, phases, wait_for_parts
from tasks.launch import export_rank, job_number, resubmission
from tasks.system import watched

WORK = Path("work")


@dataclass(frozen=True)
class StageCall:
    """One call of one stage: what it is and where its things lie."""

    stage: str
    paths: dict[str, str]
    """Input folders by option name."""
    names: dict[str, str]
    """Plain string options, e.g. evaluate's model."""
    out: str
    params: Params
    version: int
    inputs: dict[str, str]
    """Hash of each input's content."""

    @property
    def instance(self) -> str:
        """The DVC stage's name: `dedup`, `evaluate@random`."""
        return "@".join([self.stage, *self.names.values()])

    @property
    def fingerprint(self) -> str:
        """Names the work folder: differs as soon as params, inputs or VERSION do."""
        identity = [self.stage, self.version, self.params.model_dump(mode="json"), self.names, self.inputs]
        return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def work(self) -> Path:
        """What the stage needs while it works; survives kills."""
        return WORK / self.instance / self.fingerprint

    def values(self, store: StoreParams) -> dict[str, Any]:
        """What the stage's functions may ask for by name."""
        inputs = {name: Path(path) for name, path in self.paths.items()}
        places = {"out": self.work / "out", "work": self.work, "store": Store(store)}
        return {"params": self.params, **inputs, **self.names, **places}


@dataclass(frozen=True)
class Outcome:
    """What a job brings back: a summary, or the sentence of a person's mistake."""

    summary: Summary | None
    seconds: float
    job: str
    mistake: str | None


class StageJob:
    """The picklable work of a stage: imports its module in the job and makes a share of a phase, or all and `run`."""

    def __init__(self, call: StageCall, store: StoreParams, num_threads: int, share: Share | None = None) -> None:
        self.call = call
        self.store = store
        self.num_threads = num_threads
        self.share = share

    def __call__(self) -> Outcome:
        """Do this rank's work."""
        os.environ["OMP_NUM_THREADS"] = str(self.num_threads)  # both before torch is imported
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"  # threads that wait leave their core to those that load data
        export_rank()
        _log_to_stdout()
        module = import_module(f"tasks.{self.call.stage}")
        started = time.perf_counter()
        summary, mistake = None, None
        try:
            check_gpus()
            with in_use(workspace() / WORK), damage_forgotten(self.call.work):
                if self.share:
                    self._share(module, self.share)
                else:
                    with watched(self.call.work, job_number()):
                        summary = self._whole(module)
        except InputError as error:
            mistake = str(error)
        except OSError as error:
            if error.errno not in DISK_FULL:
                raise
            traceback.print_exc()
            mistake = disk_full(error, self.call.work)
        return Outcome(summary, time.perf_counter() - started, job_number(), mistake)

    def _share(self, module: ModuleType, share: Share) -> None:
        phase = next(phase for phase in phases(module) if phase.name == share.phase)
        make_parts(phase, self.call.values(self.store), first=_rank(), of=_world(), among=share.parts)

    def _whole(self, module: ModuleType) -> Summary | None:
        """Parts that no array has made, then `run`: on the first rank, or on all where the stage is `COLLECTIVE`."""
        values = self.call.values(self.store)
        if _rank() == 0:
            shutil.rmtree(values["out"], ignore_errors=True)
            values["out"].mkdir(parents=True)
        for phase in phases(module):
            make_parts(phase, values, first=_rank(), of=_world())
            wait_for_parts(phase, values)
        if _rank() > 0 and not getattr(module, "COLLECTIVE", False):
            return None
        summary = module.run(**named(module.run, values))
        if _rank() == 0:  # who writes the outputs
            flush_files(values["out"])  # before anybody is told that it is done
        return summary

    def checkpoint(self, *args: Any, **kwargs: Any) -> Any:
        """Submitit's protocol on preemption: queue the same job again; it goes on from what `work` holds."""
        return resubmission(self)


def check_gpus() -> None:
    """Raise InputError where there are GPUs, but fewer than `launch:` says: CUDA leaves out what is not there."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    if not given:
        return
    import torch  # takes seconds, and is of no use to a job without GPUs

    num_given, num_gpus = len(given.split(",")), torch.cuda.device_count()
    if torch.cuda.is_available() and num_given > num_gpus:
        raise InputError(f"launch gives the job {num_given} GPUs, but its machine has {num_gpus}; lower gpus_per_node")


def _rank() -> int:
    return int(os.environ.get("RANK", "0"))


def _world() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def _log_to_stdout() -> None:
    logging.basicConfig(
        level=logging.INFO if _rank() == 0 else logging.WARNING,
        format="%(asctime)s %(message)s",
        datefmt="%H:%M:%S",
        stream=sys.stdout,
        force=True,
    )
    for noisy in ("submitit", "httpx", "httpcore", "matplotlib", "PIL", "fontTools"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


def disk_full(error: OSError, otherwise: Path) -> str:
    """The sentence for a disk without space: that of the file which could not be written, or `otherwise`."""
    where = error.filename2 or error.filename or otherwise
    return f"the disk of {where} is full ({error.strerror}); free space there and run the stage again"
