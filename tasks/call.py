"""One call of one stage: its identity, its folder, and the job that does its work."""

import errno
import hashlib
import inspect
import json
import logging
import os
import shutil
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from dinov2.params import InputError, Params
from dinov2.records import Summary, sha256_file
from dinov2.store import Store, StoreParams
from tasks.launch import export_rank, is_first_rank, job_number, resubmission

WORK = Path("work")
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


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


@dataclass(frozen=True)
class Outcome:
    """What a job brings back: a summary, or the sentence of a person's mistake."""

    summary: Summary | None
    seconds: float
    job: str
    mistake: str | None


class StageJob:
    """The picklable work of a stage: imports its module in the job and calls `run`."""

    def __init__(self, call: StageCall, store: StoreParams, num_threads: int) -> None:
        self.call = call
        self.store = store
        self.num_threads = num_threads

    def __call__(self) -> Outcome:
        """Run the stage on this rank."""
        os.environ["OMP_NUM_THREADS"] = str(self.num_threads)  # both before torch is imported
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"  # threads that wait leave their core to those that load data
        export_rank()
        logging.basicConfig(
            level=logging.INFO if is_first_rank() else logging.WARNING,
            format="%(asctime)s %(message)s",
            datefmt="%H:%M:%S",
            stream=sys.stdout,
            force=True,
        )
        for noisy in ("submitit", "httpx", "httpcore", "matplotlib", "PIL", "fontTools"):
            logging.getLogger(noisy).setLevel(logging.WARNING)
        out = self.call.work / "out"
        if is_first_rank():
            shutil.rmtree(out, ignore_errors=True)
            out.mkdir(parents=True)
        module = import_module(f"tasks.{self.call.stage}")
        inputs = {name: Path(path) for name, path in self.call.paths.items()}
        store = Store(self.store)
        started = time.perf_counter()
        try:
            supplied = _supplied(module.run, out=out, work=self.call.work, store=store)
            summary = module.run(self.call.params, **inputs, **self.call.names, **supplied)
        except InputError as error:
            return Outcome(None, time.perf_counter() - started, job_number(), str(error))
        except OSError as error:
            if error.errno not in DISK_FULL:
                raise
            traceback.print_exc()
            return Outcome(None, time.perf_counter() - started, job_number(), disk_full(error, self.call.work))
        return Outcome(summary, time.perf_counter() - started, job_number(), None)

    def checkpoint(self, *args: Any, **kwargs: Any) -> Any:
        """Submitit's protocol on preemption: queue the same job again; it goes on from what `work` holds."""
        return resubmission(self)


def _supplied(run: Callable[..., Summary], **values: object) -> dict[str, object]:
    asked = inspect.signature(run).parameters
    return {name: value for name, value in values.items() if name in asked}


def hash_tree(path: Path) -> str:
    """sha256 over the names and contents of a file or of all files below a folder."""
    files = [path] if path.is_file() else sorted(item for item in path.rglob("*") if item.is_file())
    digest = hashlib.sha256()
    for file in files:
        name = file.name if file == path else file.relative_to(path).as_posix()
        digest.update(f"{name}\0{sha256_file(file)}\n".encode())
    return digest.hexdigest()


def disk_full(error: OSError, otherwise: Path) -> str:
    """The sentence for a disk without space: that of the file which could not be written, or `otherwise`."""
    where = error.filename2 or error.filename or otherwise
    return f"the disk of {where} is full ({error.strerror}); free space there and run the stage again"
