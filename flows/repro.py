"""The one Prefect task: a stage, brought up to date by DVC.

DVC decides whether a stage runs at all; the stage's own command says how it ended by `work/<stage>/failure.json`. So a
person's mistake or a missed gate is never tried again, and a crash is, from where the stage left off.
"""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.states import Cancelled, Completed
from prefect.tasks import Task

from flows.places import place

SKIPPED = re.compile(r"didn't change, skipping|is cached - skipping run")
CHATTER = re.compile(r"To track the changes|git add dvc.lock|To enable auto staging|core.autostage|Use `dvc push`")
BUSY = re.compile(r"is busy, it is being blocked by|Unable to acquire lock|is already being run by")
OF_A_PERSON = re.compile(r"^ERROR: .*, exited with [23]$")  # codes of a stage for a mistake and for a missed gate
BUSY_WAIT_S = 10.0
CANCEL_PATIENCE_S = 15.0
STOPPING = threading.Event()
"""Set when the flow of this process is being ended: tasks run in threads, which no signal reaches."""


class StageMistakeError(Exception):
    """A person's mistake or a missed gate: trying again can't help."""


class StageCrashError(Exception):
    """The stage's job failed; trying again goes on from its last checkpoint."""


class StageStoppedError(Exception):
    """The flow is being ended, by a person or a signal, and this stage with it."""


def _is_worth_retrying(task: Task[..., Any], task_run: TaskRun, state: State[Any]) -> bool:
    return isinstance(state.result(raise_on_failure=False), StageCrashError)


@task(
    task_run_name="{stage}",
    retry_condition_fn=_is_worth_retrying,  # how often: flows.retries in params.yaml
    cache_policy=NO_CACHE,  # DVC knows what is up to date
    persist_result=False,
)
def repro(stage: str, *, cluster: str, force: bool = False) -> State[Any]:
    """Bring `stage`, or one of a stage of many as `evaluate@random`, up to date: `dvc repro --single-item`.

    Its lines go to this task's log. It takes one of the places that Prefect knows of on the cluster.
    """
    try:
        with place(cluster, STOPPING):
            return _repro(stage, force=force)
    except StageStoppedError as error:
        return Cancelled(message=str(error))


def _repro(stage: str, *, force: bool) -> State[Any]:
    log = get_run_logger()
    if STOPPING.is_set():
        raise StageStoppedError(f"{stage}: stopped before it began")
    for mark in _failure_marks(stage):
        mark.unlink()
    command = [sys.executable, "-m", "dvc", "--wait-for-lock", "repro", "--single-item", *["--force"] * force, stage]
    started = time.monotonic()
    while True:
        code, lines = _run(command, log.info)
        if code == 0 or not any(BUSY.search(line) for line in lines):
            break
        log.warning("%s is still held by another process, e.g. of an earlier run; waiting for it", stage)
        if STOPPING.wait(BUSY_WAIT_S):
            raise StageStoppedError(f"{stage}: stopped")
    with Path("work/flow.jsonl").open("a") as ledger:
        ledger.write(json.dumps({"stage": stage, "seconds": time.monotonic() - started, "code": code}) + "\n")
    if code != 0:
        raise _failure(stage, code, lines)
    commands = [line for line in lines if line.startswith("> ")]
    if not commands and any(SKIPPED.search(line) for line in lines):
        return Completed(name="UpToDate", message=f"{stage}: nothing changed")
    return Completed(message=f"{stage}: done")


def _failure_marks(stage: str) -> list[Path]:
    """What the stage left to say why it failed; of a stage of many, what any of its members left."""
    return sorted(path for name in (stage, f"{stage}@*") for path in Path("work").glob(f"{name}/failure.json"))


def _failure(stage: str, code: int, lines: list[str]) -> Exception:
    marks = _failure_marks(stage)
    last = lines[-1] if lines else "dvc said nothing"
    if not marks and code > 0 and not any(line.startswith("> ") for line in lines):  # refused before the stage began
        return StageMistakeError(f"{stage}: {last}")
    if not marks and OF_A_PERSON.search(last):  # e.g. of a full disk, where nothing can be left
        said = [last, *(line for line in lines if not line.startswith("ERROR: "))][-1]
        return StageMistakeError(f"{stage}: {said.removeprefix(f'{stage}: ')}")
    if not marks:
        return StageCrashError(f"{stage}: {last}" if code > 0 else f"{stage}: dvc was ended by signal {-code}")
    failure = json.loads(marks[0].read_text())
    sentence = f"{marks[0].parent.name}: {failure['sentence']}"
    return StageCrashError(sentence) if failure["kind"] == "crash" else StageMistakeError(sentence)


def _run(command: list[str], show: Callable[[str], None]) -> tuple[int, list[str]]:
    """Run a command in a session of its own, passing its lines on; when this task is cancelled, so is all of it."""
    bin_folder = str(Path(sys.executable).parent)  # so that dvc.yaml's `python` is ours
    environment = {**os.environ, "PATH": os.pathsep.join([bin_folder, os.environ.get("PATH", "")])}
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        env=environment,
        start_new_session=True,
        text=True,
        errors="replace",
    )
    lines: list[str] = []

    def collect() -> None:
        assert process.stdout is not None
        with process.stdout as stream:
            lines.extend(line.rstrip() for line in stream if line.strip())

    reader = threading.Thread(target=collect, daemon=True)  # a job that outlives dvc would hold the pipe open
    reader.start()
    shown = 0
    try:
        while not STOPPING.wait(0.05):
            code = process.poll()
            if code is not None:
                reader.join(timeout=1)
            for line in lines[shown:]:
                shown += 1
                if not CHATTER.search(line):
                    show(line)
            if code is not None:
                return code, lines
    except BaseException:
        _end(process)
        raise
    _end(process)
    raise StageStoppedError("stopped")


def _end(process: subprocess.Popen[str]) -> None:
    """End the whole session; the stage in it, which dvc does not wait for, needs some seconds to cancel its job."""
    for number, patience_s in ((signal.SIGTERM, CANCEL_PATIENCE_S), (signal.SIGKILL, 1.0)):
        deadline = time.monotonic() + patience_s
        try:
            os.killpg(process.pid, number)
            while time.monotonic() < deadline:
                process.poll()  # a child that ended stays in the session until it is asked for
                os.killpg(process.pid, 0)
                time.sleep(0.1)
        except ProcessLookupError:  # nobody is left
            return
