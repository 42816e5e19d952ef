"""A stage's side of tracking: it says in its work folder what there is to ship; tasks/tracking.py ships it."""

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import psutil

from dinov2.records import write_json

PARENT_RUN = "DINOV2_MLFLOW_PARENT_RUN_ID"
MARK = "tracking.json"
TROUBLE = "tracking-trouble.txt"


class Tracked:
    """A stage's side of tracking: says what is to be shipped and leaves it to the background process.

    with Tracked(work, name="pretrain", values={...}, tags={...}, warn=print) as tracked:
        ... the job runs, `work/metrics.jsonl` grows ...
        tracked.finish("FINISHED", metrics, files)
    """

    def __init__(
        self,
        work: Path,
        *,
        name: str,
        values: Mapping[str, object],
        tags: Mapping[str, str],
        warn: Callable[[str], None],
    ) -> None:
        self.root = work.parents[1]
        self.work = work
        self.warn = warn
        self.started = time.time()
        parent = {"mlflow.parentRunId": os.environ[PARENT_RUN]} if os.environ.get(PARENT_RUN) else {}
        process = psutil.Process()
        self.mark: dict[str, Any] = {
            "attempt": time.time_ns(),
            "name": name,
            "values": values,
            "tags": {**tags, **parent},
            "process": [process.pid, process.create_time()],
            "status": "RUNNING",
            "metrics": {},
            "files": [],
        }

    def __enter__(self) -> "Tracked":
        write_json(self.work / MARK, self.mark)
        start_shipping(self.root)
        return self

    def finish(self, status: str, metrics: Mapping[str, float], files: list[Path]) -> None:
        """What the run ends with."""
        self.mark |= {"status": status, "metrics": dict(metrics), "files": [str(path.absolute()) for path in files]}

    def __exit__(self, *exception: object) -> None:
        if self.mark["status"] == "RUNNING":
            self.mark["status"] = "KILLED"
        with contextlib.suppress(OSError):  # a full disk: the stage's own sentence counts
            write_json(self.work / MARK, self.mark)
        trouble = self.root / TROUBLE
        if trouble.exists() and trouble.stat().st_mtime >= self.started:
            self.warn(trouble.read_text().strip())


def start_shipping(root: Path) -> None:
    """Start the background process; where one runs already, the new one sees that and ends."""
    with (root / "tracking.log").open("a") as log:
        subprocess.Popen(
            [sys.executable, "-m", "tasks.tracking", "--follow"],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
