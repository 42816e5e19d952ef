"""What a run talks to: SLURM, MLflow and DVC."""

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil

from dinov2.params import load_section
from tasks.doctor.ask import said_by
from tasks.doctor.finding import Finding, ok, problem, warning
from tasks.doctor.partitions import SINFO, names, read_partitions, shortcomings
from tasks.resources import LaunchParams
from tasks.server import TrackingParams

NOT_SHARED = {"tmpfs", "ramfs", "overlay"}


def check_slurm(file: Path) -> Iterator[Finding]:
    """The controller answers, and partitions can give what is asked for."""
    launch = load_section(file, "launch", LaunchParams)
    if launch.cluster != "slurm":
        return
    absent = [name for name in ("sbatch", "squeue", "scontrol", "scancel", "srun") if shutil.which(name) is None]
    if absent:
        yield problem(f"SLURM: no {absent[0]} on this machine; run on a login node, or set launch.cluster: local")
        return
    said = said_by(SINFO)
    if not said:
        yield problem("SLURM: sinfo does not answer; ask your administrators whether slurmctld runs")
        return
    partitions = read_partitions(said)
    for name, asked in {"default": launch.default, **launch.stages}.items():
        for why in shortcomings(name, asked, partitions):
            yield (warning if asked.partition is None else problem)(f"SLURM: {why}")  # a site may route such jobs
    yield ok(f"SLURM: answers; partitions {', '.join(names(partitions))}")
    kind = _file_system(Path().absolute())
    if kind in NOT_SHARED:
        yield warning(f"SLURM: the repository lies on {kind}, which nodes hardly share; move it to one they do")


def _file_system(path: Path) -> str:
    mounts = [part for part in psutil.disk_partitions(all=True) if path.is_relative_to(part.mountpoint)]
    return max(mounts, key=lambda part: len(part.mountpoint)).fstype if mounts else "unknown"


def check_tracking(file: Path) -> Iterator[Finding]:
    """MLflow can be reached, or its file written."""
    params = load_section(file, "tracking", TrackingParams)
    uri, trouble = params.absolute_uri(), params.trouble()
    database = Path(uri.removeprefix("sqlite:///"))
    if trouble is not None:
        yield warning(f"MLflow: {trouble}")
    elif uri.startswith("sqlite:") and not os.access(database if database.exists() else database.parent, os.W_OK):
        yield warning(f"MLflow: {database} can't be written; curves will wait in work/")
    else:
        yield ok(f"MLflow: {params.uri}")


def check_dvc(file: Path) -> Iterator[Finding]:
    """DVC is there and knows the repository."""
    if not Path(".dvc").is_dir():
        yield problem("DVC: no .dvc here; run `make ready`")
        return
    version = said_by([sys.executable, "-m", "dvc", "--version"])
    if not version:
        yield problem("DVC: the command does not run; run `make venv`")
        return
    remotes = said_by([sys.executable, "-m", "dvc", "remote", "list"]).splitlines()
    default = [line.split()[0] for line in remotes if line.endswith("(default)")]
    if default:
        yield ok(f"DVC: {version.strip()}, remote {default[0]}")
    elif remotes:
        do = f"`dvc remote default {remotes[0].split()[0]}`"
        yield warning(f"DVC: {version.strip()}, no remote is the default, so that `dvc push` fails; {do}")
    else:
        yield warning(f"DVC: {version.strip()}, no remote: outputs are kept here alone; see docs/sharing.md")
