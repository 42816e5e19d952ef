"""What can happen to a run: each kind finds its victim among the processes and files of a sandbox."""

import contextlib
import os
import time
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import NamedTuple

import psutil
from slurm_lab import Cluster, squeue

FROZEN_S = 4.0
FULL_S = 4.0
DEATH_S = 0.5  # until a killed process writes no more; it is its parent that waits for it
OUTAGE_S = 3.0
CUT = (
    "checkpoints/**/*", "job*/job.json", "mlflow.json", "tracking.json", "**/*.parquet", "**/*.arrow", "**/*.npy",
    "**/*.npz",
)  # fmt: skip
"""Files of work/ that are cut, more than a power cut can damage; not outputs and curves, which must be on the disk."""


class Scene(NamedTuple):
    """Where blows fall."""

    folder: Path
    stage: str
    """The stage that runs."""
    has_own_disk: bool
    servers: dict[str, Callable[[], None]]
    """`prefect`, `mlflow`: kills that server; it is started again afterwards."""
    cluster: Cluster | None


Blow = Callable[[Scene, Random], str | None]
"""Does it; returns what was hit, or None if there is nothing to hit now."""


def _processes(scene: Scene, *words: str) -> list[psutil.Process]:
    """Processes of the sandbox whose command line has all the words."""
    found: list[psutil.Process] = []
    for process in psutil.process_iter():
        try:
            line, where = " ".join(process.cmdline()), process.cwd()
        except psutil.Error:
            continue
        if where.startswith(str(scene.folder)) and all(word in line for word in words):
            found.append(process)
    return sorted(found, key=lambda process: process.pid)


def _kill(name: str, *words: str) -> Blow:
    def blow(scene: Scene, random: Random) -> str | None:
        victims = _processes(scene, *(word.format(stage=scene.stage) for word in words))
        if not victims:
            return None
        victim = random.choice(victims)
        victim.kill()
        return f"{name} killed"

    return blow


def _kill_child(scene: Scene, random: Random) -> str | None:
    children = [child for job in _processes(scene, "submitit.core._submit") for child in job.children()]
    if not children:
        return None
    random.choice(children).kill()
    return "a process of the job's own killed"


def _freeze(scene: Scene, random: Random) -> str | None:
    victims = _processes(scene, "submitit.core._submit") + _processes(scene, "-m tasks.")
    if not victims:
        return None
    victim = random.choice(victims)
    victim.suspend()
    time.sleep(FROZEN_S)
    victim.resume()
    return f"a process frozen for {FROZEN_S:.0f} s"


def _fill_disk(scene: Scene, random: Random) -> str | None:
    if not scene.has_own_disk:
        return None
    filler = scene.folder / "filler"
    with filler.open("wb") as stream:
        try:
            while True:
                stream.write(bytes(1_000_000))
                stream.flush()
        except OSError:
            pass
        finally:
            time.sleep(FULL_S)
            filler.unlink()
    return f"disk full for {FULL_S:.0f} s"


def _files_to_cut(scene: Scene) -> list[Path]:
    work = scene.folder / "work"
    found = (path for kind in CUT for path in work.glob(f"{scene.stage}*/*/{kind}"))
    return sorted(path for path in found if "out" not in path.relative_to(work).parts and _size(path) > 1)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size if path.is_file() else 0
    except FileNotFoundError:  # renamed by now
        return 0


def _cut(scene: Scene, random: Random) -> str | None:
    """Kill all that runs and cut a file of the stage's work in half, as a power cut would."""
    if not _files_to_cut(scene):
        return None
    for process in _processes(scene):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    time.sleep(DEATH_S)
    files = _files_to_cut(scene)
    if not files:
        return "all killed"
    victim = random.choice(files)
    os.truncate(victim, _size(victim) // 2)
    return f"all killed, {'/'.join(victim.relative_to(scene.folder).parts[3:])} cut in half"


def _server(name: str) -> Blow:
    def blow(scene: Scene, random: Random) -> str | None:
        scene.servers[name]()
        return f"{name} server killed"

    return blow


def _power_cut(scene: Scene, random: Random) -> str | None:
    nodes = squeue("%N").split()
    if scene.cluster is None or not nodes:
        return None
    node = random.choice(nodes).replace("[", "").split(",")[0].split("-")[0]
    scene.cluster.node("kill", node)
    time.sleep(OUTAGE_S)
    scene.cluster.node("start", node)
    return "a node's power cut"


def _freeze_node(scene: Scene, random: Random) -> str | None:
    if scene.cluster is None:
        return None
    node = f"node{random.randint(1, 4)}"
    scene.cluster.node("stop", node)
    time.sleep(FROZEN_S)
    scene.cluster.node("cont", node)
    return f"a node's daemon frozen for {FROZEN_S:.0f} s"


def _kill_controller(scene: Scene, random: Random) -> str | None:
    if scene.cluster is None:
        return None
    scene.cluster.node("kill", "slurmctl")
    time.sleep(OUTAGE_S)
    scene.cluster.node("start", "slurmctl")
    return f"slurmctld gone for {OUTAGE_S:.0f} s"


def strike(kind: str, scene: Scene, random: Random) -> str | None:
    """Let a blow fall; returns what was hit, or None if there was nothing to hit, or no more."""
    try:
        return ON_SLURM[kind](scene, random) if scene.cluster else BLOWS[kind](scene, random)
    except psutil.NoSuchProcess:
        return None


BLOWS: dict[str, Blow] = {
    "flow": _kill("flow", "flows.full_pipeline"),
    "dvc": _kill("dvc", "-m dvc", "repro"),
    "stage": _kill("stage", "-m tasks.{stage} "),
    "job": _kill("the job's controller", "submitit.local._local"),
    "rank": _kill("a rank or worker", "submitit.core._submit"),
    "child": _kill_child,
    "shipper": _kill("MLflow's shipper", "-m tasks.tracking"),
    "prefect": _server("prefect"),
    "mlflow": _server("mlflow"),
    "frozen": _freeze,
    "disk": _fill_disk,
    "cut": _cut,
}
ON_SLURM: dict[str, Blow] = {
    **{name: blow for name, blow in BLOWS.items() if name != "job"},
    "power": _power_cut,
    "node": _freeze_node,
    "slurmctld": _kill_controller,
}
