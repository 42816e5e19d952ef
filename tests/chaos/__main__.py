"""Break a small demo run again and again; every artifact must be that of a run nobody disturbed.

Run:   make chaos SEED=0, or
       PYTHONPATH=.:tests python -m chaos --seed 0 [--blows 30] [--cluster slurm] [--out table.md] [--keep]

The pipeline runs twice in clones of its own: alone, and disturbed. The seed chooses what happens, in which stage and
how long after its start: processes are killed or frozen, servers go away, the disk fills up, files are cut short. A
flow that ends before its time is started again, as its user would do; nothing else is mended. Exit code 1 if a file
below data/ differs, or if the run can't be brought to its end. The full disk needs root, `--cluster slurm` Debian's
packages, too.
"""

import argparse
import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import psutil
from slurm_lab import Cluster

from chaos.blows import BLOWS, ON_SLURM, Scene, strike
from chaos.sandbox import Sandbox
from dinov2.command import show
from flows.stages import STAGES

PATIENCE_S = 240.0  # without any sign of life
MAX_DELAY_S = 4.0
CAME_BACK = re.compile(
    r"re-attaching to job|taking its results|going on after step \d+|was queued again|put aside|is full|was damaged"
)


class Server:
    """A background server that can be killed, and is started again."""

    def __init__(self, command: list[str], port: int, folder: Path, environment: dict[str, str]) -> None:
        self.command, self.port, self.folder, self.environment = command, port, folder, environment
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it answers."""
        folder = self.folder
        folder.mkdir(exist_ok=True)
        with (folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                self.command, cwd=folder, env=self.environment, stdout=log, stderr=log, start_new_session=True
            )
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
                return
            time.sleep(0.2)
        raise SystemExit(f"{self.command[0]} did not answer; see {folder}/log")

    def kill(self) -> None:
        """Kill it and its children."""
        assert self.process is not None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@contextlib.contextmanager
def servers(folder: Path) -> Iterator[dict[str, Server]]:
    """A Prefect server and a tracking server, as long as the block lasts."""
    ports = {"prefect": _free_port(), "mlflow": _free_port()}
    bin_folder = Path(sys.executable).parent
    environment = {**os.environ, "PREFECT_HOME": str(folder / "prefect"), "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    commands = {
        "prefect": [str(bin_folder / "prefect"), "server", "start", "--port", str(ports["prefect"])],
        "mlflow": [
            str(bin_folder / "mlflow"), "server", "--port", str(ports["mlflow"]), "--workers", "1",
            "--backend-store-uri", f"sqlite:///{folder}/mlflow/mlflow.db",
        ],
    }  # fmt: skip
    found = {name: Server(commands[name], ports[name], folder / name, environment) for name in commands}
    try:
        for server in found.values():
            server.start()
        yield found
    finally:
        for server in found.values():
            if server.process is not None:
                server.kill()


class Planned(NamedTuple):
    """A blow that the seed chose."""

    stage: str
    delay_s: float
    kind: str


class Happened(NamedTuple):
    """A row of the table."""

    planned: Planned
    hit: str
    log_position: int


def plan(seed: int, num_blows: int, kinds: list[str]) -> list[Planned]:
    """What is to happen, in order of the stages: kinds in turn, so that each comes up, at random moments.

    For one that found nothing to hit in its stage, anything may happen in a later one; none is planned for the last.
    """
    random = Random(seed)
    turns = [kind for _ in range(num_blows // len(kinds) + 1) for kind in random.sample(kinds, len(kinds))]
    moments = sorted((random.randrange(len(STAGES) - 1), random.uniform(0, MAX_DELAY_S)) for _ in range(num_blows))
    return [Planned(STAGES[stage], delay_s, kind) for (stage, delay_s), kind in zip(moments, turns, strict=False)]


def running_stage(folder: Path) -> str | None:
    """The stage whose command runs in a clone."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            words = process.cmdline()
            named = [word.removeprefix("tasks.") for word in words if word.startswith("tasks.")]
            if named and named[0] in STAGES and process.cwd() == str(folder):
                return named[0]
    return None


class Disturbed:
    """A run of the pipeline to which planned things happen."""

    def __init__(
        self, sandbox: Sandbox, log: Path, found: dict[str, Server], cluster: Cluster | None, random: Random
    ) -> None:
        self.sandbox, self.log, self.servers, self.cluster, self.random = sandbox, log, found, cluster, random
        self.happened: list[Happened] = []
        self.num_starts = 0

    def run(self, planned: list[Planned]) -> bool:
        """Bring the pipeline to its end, whatever happens; returns whether it came there."""
        waiting = list(planned)
        flow = self._start()
        started: dict[str, float] = {}
        while True:
            stage = running_stage(self.sandbox.folder)
            if stage is not None:
                started.setdefault(stage, time.monotonic())
                waited_s = time.monotonic() - started[stage]
                come = [one for one in waiting if STAGES.index(stage) >= STAGES.index(one.stage)]
                due = [one for one in come if waited_s > one.delay_s]
                struck = next((one for one in due if self._strike(one, stage)), None)
                if struck is not None:
                    waiting.remove(struck)
                    started[stage] = time.monotonic()  # a later one of this stage counts from here
            code = flow.poll()
            if code == 0:
                return True
            if code is not None:
                if self.num_starts > 3 * len(planned) + 3:
                    return False
                time.sleep(1)
                flow = self._start()
            if time.time() - self.log.stat().st_mtime > PATIENCE_S:
                os.killpg(flow.pid, signal.SIGKILL)
                return False
            time.sleep(0.1)

    def _start(self) -> subprocess.Popen[bytes]:
        self.num_starts += 1
        with self.log.open("a") as log:
            log.write(f"=== start {self.num_starts} of the flow\n")
        for server in self.servers.values():
            if server.process is None or server.process.poll() is not None:
                server.start()
        return self.sandbox.start_flow(self.log)

    def _strike(self, planned: Planned, stage: str) -> bool:
        scene = Scene(
            self.sandbox.folder, stage, self.sandbox.has_own_disk, {name: s.kill for name, s in self.servers.items()},
            self.cluster,
        )  # fmt: skip
        position = self.log.stat().st_size
        blows = ON_SLURM if self.cluster else BLOWS
        others = [] if stage == planned.stage else self.random.sample(list(blows), len(blows))
        hit = next(filter(None, (strike(kind, scene, self.random) for kind in [planned.kind, *others])), None)
        if hit is None:
            return False
        self.happened.append(Happened(planned._replace(stage=stage), hit, position))
        show([f"{len(self.happened)}: {stage}: {hit}"])
        for server in self.servers.values():
            if server.process is not None and server.process.poll() is not None:
                time.sleep(2)
                server.start()
        return True

    def table(self) -> Iterator[str]:
        """What happened, and what the log says came back before the next blow."""
        text = self.log.read_bytes()
        ends = [row.log_position for row in self.happened[1:]] + [len(text)]
        yield "| | stage | what happened | what came back |\n|---:|---|---|---|"
        for number, (row, end) in enumerate(zip(self.happened, ends, strict=True)):
            said = text[row.log_position : end].decode(errors="replace")
            back = list(dict.fromkeys(CAME_BACK.findall(said)))
            restarted = ["the flow was started again"] if "=== start" in said else []
            yield f"| {number + 1} | {row.planned.stage} | {row.hit} | {'; '.join(restarted + back) or 'went on'} |"


def compared(calm: dict[str, bytes], disturbed: dict[str, bytes]) -> list[str]:
    """Names of the files that one run lacks, or that differ."""
    return sorted(name for name in calm.keys() | disturbed.keys() if calm.get(name) != disturbed.get(name))


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--blows", type=int, default=30)
    parser.add_argument("--cluster", choices=("local", "slurm"), default="local")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--keep", action="store_true", help="leave the clones where they are, as after a failure")
    options = parser.parse_args()
    root = Path(tempfile.mkdtemp(prefix="chaos"))
    with contextlib.ExitStack() as stack:
        found = stack.enter_context(servers(root))
        urls: dict[str, Any] = {
            "prefect": f"http://127.0.0.1:{found['prefect'].port}/api",
            "tracking": f"http://127.0.0.1:{found['mlflow'].port}",
        }
        boxes = {name: Sandbox(root / name, cluster=options.cluster, **urls) for name in ("calm", "disturbed")}
        cluster = Cluster(root / "slurm") if options.cluster == "slurm" else None
        if cluster:
            cluster.up()  # now that the disks are mounted, since nodes see only what was there before them
            stack.callback(cluster.down)
        lines = list(_report(boxes, root, found, cluster, options))
        if lines[-1].startswith("Equal") and not options.keep:
            for box in boxes.values():
                stack.callback(box.remove)
        _end_all(root)
    text = "\n".join(lines) + "\n"
    show([text])
    if options.out:
        options.out.write_text(text)
    return 0 if lines[-1].startswith("Equal") else 1


def _report(
    boxes: dict[str, Sandbox], root: Path, found: dict[str, Server], cluster: Cluster | None, options: Any
) -> Iterator[str]:
    """Both runs; gives the lines of the table."""
    kinds = [name for name in (ON_SLURM if cluster else BLOWS) if name != "disk" or boxes["calm"].has_own_disk]
    planned = plan(options.seed, options.blows, kinds)
    calm = boxes["calm"].start_flow(root / "calm.log")
    if calm.wait() != 0:
        yield f"The undisturbed run failed; see {root}/calm.log"
        return
    show(["the undisturbed run has ended"])
    run = Disturbed(boxes["disturbed"], root / "disturbed.log", found, cluster, Random(options.seed))
    (root / "disturbed.log").touch()
    came_to_end = run.run(planned)
    num_blows = f"{len(run.happened)} of {len(planned)} blows"
    where = " on four SLURM nodes" if cluster else ""
    yield f"# Chaos{where}, seed {options.seed}: {num_blows}, {run.num_starts} starts of the flow\n"
    yield from run.table()
    yield ""
    if not came_to_end:
        yield f"The disturbed run did not come to its end; see {root}/disturbed.log"
        return
    outputs = {name: box.outputs() for name, box in boxes.items()}
    different = compared(outputs["calm"], outputs["disturbed"])
    if different:
        yield f"Different: {', '.join(different)}; see {root}"
    else:
        yield f"Equal: all {len(outputs['calm'])} files below data/, byte for byte."


def _end_all(root: Path) -> None:
    """End what still runs in the clones."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.cwd().startswith(str(root)):
                process.kill()


if __name__ == "__main__":
    sys.exit(main())
