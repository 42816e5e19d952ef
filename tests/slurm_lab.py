"""A real SLURM of four nodes on this machine, and projects whose stages run on it. Needs root and Debian's packages.

cluster/lab/ starts the daemons on loopback, in a folder of their own; `make test-cluster` installs the packages.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, TINY, draw_inputs
from ruamel.yaml import YAML

LAB = Path(__file__).with_name("cluster") / "lab"
NEEDED = ("slurmctld", "slurmd", "sbatch", "munged", "unshare")
TRACKING = {"uri": "http://127.0.0.1:9", "experiment": "dinov2", "ship_every_s": 2.0, "idle_s": 1.0}  # none answers
SMALL = {
    "nodes": 1, "gpus_per_node": 0, "cpus_per_task": 1, "memory_gb": 1, "timeout_min": 60, "workers": 1,
    "max_running": 2, "partition": None, "account": None, "constraint": None, "sbatch": {}, "setup": [], "python": None,
}  # fmt: skip


class Cluster:
    """The daemons of a cluster whose state is in a folder."""

    def __init__(self, state: Path) -> None:
        self.state = state

    def up(self) -> None:
        """Start what is down; sets this process's environment so that SLURM's commands find it."""
        subprocess.run([LAB / "up.sh", self.state, "4"], check=True, stdout=subprocess.DEVNULL)
        os.environ["SLURM_CONF"] = str(self.state / "slurm.conf")

    def node(self, verb: str, host: str) -> None:
        """`kill` (a power cut), `start`, `stop` (freezes the daemon) or `cont`; node1 to node4, or slurmctl."""
        subprocess.run([LAB / "node.sh", self.state, verb, host], check=True)

    def save(self) -> None:
        """Return when a power cut of the controller cannot make it forget the jobs that run now."""
        saved_at = time.time()
        for number in self.jobs():
            subprocess.run(["scontrol", "update", f"jobid={number}", f"comment={saved_at}"], check=True)
        wait(lambda: (self.state / "ctld" / "job_state").stat().st_mtime > saved_at, "the controller to save its state")

    def resumed(self) -> bool:
        """Whether all nodes take jobs, once those that SLURM drained are told to."""
        subprocess.run(["scontrol", "update", "nodename=ALL", "state=resume"], check=False, stderr=subprocess.DEVNULL)
        states = ["sinfo", "--noheader", "--Node", "--partition=main", "--format=%T"]
        return set(subprocess.run(states, check=True, capture_output=True, text=True).stdout.split()) == {"idle"}

    def down(self) -> None:
        """Stop everything, jobs included."""
        subprocess.run([LAB / "down.sh", self.state, "--purge"], check=True)

    def jobs(self) -> list[str]:
        """Numbers of the jobs that wait or run."""
        return squeue("%A").split()


def squeue(form: str) -> str:
    """What squeue says of jobs that wait or run, in the given format."""
    command = ["squeue", "--noheader", f"--format={form}"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def wait(until: Callable[[], object], what: str, timeout_s: float = 60) -> None:
    """Return when `until` is true."""
    deadline = time.monotonic() + timeout_s
    while not until():
        assert time.monotonic() < deadline, f"waited {timeout_s} s for {what}"
        time.sleep(0.1)


class Project:
    """A folder with small params and inputs, whose stages run on SLURM."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.params: dict[str, Any] = {
            "inputs": {name: f"inputs/{name}" for name in ("crawl", "seeds", "evaluation")},
            **json.loads(json.dumps(TINY)),
            "gates": {},
            "store": {"url": "store", "cache": "work/store-cache", "remote": None},
            "launch": {"cluster": "slurm", "save_s": 20, "max_timeouts": 5, "default": SMALL, "stages": {}},
            "tracking": TRACKING,
        }
        draw_inputs(folder / "inputs")
        shutil.copy(ROOT / "dvc.yaml", folder)
        self.write()

    def write(self, **asked: Any) -> None:
        """Write params.yaml; `asked` changes what all jobs ask for."""
        self.params["launch"]["default"] = {**self.params["launch"]["default"], **asked}
        with (self.folder / "params.yaml").open("w") as stream:
            YAML().dump(self.params, stream)

    def start(self, stage: str, *options: str) -> "Running":
        """Start a stage's command."""
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(
            [sys.executable, "-m", f"tasks.{stage}", *options], cwd=self.folder, env=environment,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
        )  # fmt: skip
        return Running(process)

    def bootstrap(self, num_steps: int = 3, out: str = "data/bootstrap", **asked: Any) -> "Running":
        """Start a training of so many steps."""
        self.params["bootstrap"]["num_steps"] = num_steps
        self.write(**asked)
        return self.start("bootstrap", "--seeds", "inputs/seeds", "--out", out)

    def jobs(self, stage: str) -> list[str]:
        """Numbers of the jobs that were ever submitted for a stage."""
        attempts = self.folder.glob(f"work/{stage}/*/job*/attempts/*/*_submitted.pkl")
        return sorted(path.name.removesuffix("_submitted.pkl") for path in attempts)

    def last_step(self, stage: str = "bootstrap") -> int:
        """The last step that a training has written down; 0 if none."""
        texts = [path.read_text() for path in self.folder.glob(f"work/{stage}/*/metrics.jsonl")]
        lines = [line for text in texts for line in text.splitlines(keepends=True) if line.endswith("\n")]
        return max((json.loads(line)["step"] for line in lines), default=0)

    def is_alive(self) -> bool:
        """Whether a process of one of its jobs runs on any node."""
        command = ["pgrep", "-f", f"submitit.core._submit {self.folder}"]
        return subprocess.run(command, check=False, stdout=subprocess.DEVNULL).returncode == 0

    def failure(self, stage: str) -> dict[str, str]:
        """What the stage left for the flow."""
        return json.loads((self.folder / "work" / stage / "failure.json").read_text())

    def output(self, folder: str) -> dict[str, bytes]:
        """Files of an output, by name."""
        root = self.folder / folder
        return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


class Running:
    """A stage's command that was started."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

    def end(self, timeout_s: float = 100) -> tuple[int, str]:
        """Its exit code and everything it said."""
        try:
            said, _ = self.process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            said, _ = self.process.communicate()
            pytest.fail(f"did not end within {timeout_s} s; it said:\n{said}")
        return self.process.returncode, said

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the command alone."""
        self.process.send_signal(number)
