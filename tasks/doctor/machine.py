"""What this machine has: packages, disk, cores, memory, GPUs and a clock."""

import importlib.metadata
import os
import shutil
import sys
import time
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import psutil

from dinov2.curation.costs.sizes import Assumed
from dinov2.params import InputError, load_section
from dinov2.store import Store, StoreParams
from dinov2.train.plan import Assumptions
from tasks.call import WORK
from tasks.doctor.ask import said_by
from tasks.doctor.finding import Finding, ok, problem, warning
from tasks.doctor.params import stages
from tasks.needs import needs
from tasks.resources import LaunchParams, Resources

MIN_FREE_GB = 5.0
MAX_SKEW_S = 5.0


def check_packages(file: Path) -> Iterator[Finding]:
    """The installed set is the tested one."""
    pins = [line.partition("==") for line in Path("constraints.txt").read_text().splitlines() if "==" in line]
    others: list[str] = []
    for name, _, version in pins:
        try:
            found = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # of an extra that is not installed
        if found.partition("+")[0] != version.partition("+")[0]:
            others.append(f"{name} {found} (tested: {version})")
    if others:
        yield warning(f"packages: {len(others)} are not as tested, e.g. {others[0]}; run `make venv` in a fresh .venv")
    else:
        yield ok(f"packages: as tested, on Python {sys.version.split()[0]}")


def check_disk(file: Path) -> Iterator[Finding]:
    """There is room, at least for what training keeps; what images take depends on how many there are."""
    trained = [stage for stage in stages() if hasattr(import_module(f"tasks.{stage}"), "networks_of")]
    try:
        kept_gb = sum(need.written_bytes or 0 for need in needs(trained, file, Assumed(), Assumptions())) / 1e9
    except InputError:  # which check_plan tells
        kept_gb = 0.0
    yield _free(Path(), "work", MIN_FREE_GB + kept_gb)
    store = Store(load_section(file, "store", StoreParams))
    if store.is_local:
        yield _free(Path(store.root), "store", MIN_FREE_GB)


def _free(path: Path, name: str, least_gb: float) -> Finding:
    there = next(place for place in (path.absolute(), *path.absolute().parents) if place.exists())
    free_gb = shutil.disk_usage(there).free / 1e9
    line = f"disk: {free_gb:,.0f} GB free for {name} at {there}"
    return ok(line) if free_gb >= least_gb else problem(f"{line}, less than {least_gb:,.0f}; free some")


def check_machine(file: Path) -> Iterator[Finding]:
    """Jobs that run here get what launch promises them."""
    launch = load_section(file, "launch", LaunchParams)
    if launch.cluster == "slurm":
        return
    cores, memory_gb, gpus = os.cpu_count() or 1, psutil.virtual_memory().total / 1e9, _num_gpus()
    for name, asked in {"default": launch.default, **launch.stages}.items():
        for what, need, has in _asked_of_one(asked, cores, memory_gb, gpus):
            if need > has:
                do = f"lower launch.stages.{name}" if name != "default" else "lower launch.default"
                level = problem if what in ("GPUs", "nodes") else warning
                yield level(f"machine: {name} asks for {need:,} {what}, there are {has:,.0f}; {do}")
    yield ok(f"machine: {cores} cores, {memory_gb:.0f} GB of memory, {gpus} GPUs")


def _asked_of_one(asked: Resources, cores: int, memory_gb: float, gpus: int) -> list[tuple[str, int, float]]:
    return [
        ("cores", asked.cpus_per_task * asked.tasks_per_node * asked.workers, cores),
        ("GB of memory", asked.memory_gb * asked.workers, memory_gb),
        ("GPUs", asked.gpus_per_node, gpus),
        ("nodes", asked.nodes, 1),
    ]


def _num_gpus() -> int:
    lines = said_by(["nvidia-smi", "--list-gpus"]).splitlines()
    return sum(line.startswith("GPU ") for line in lines)  # not parts of them, nor `No devices were found`


def check_clock(file: Path) -> Iterator[Finding]:
    """This machine and the one that keeps its files agree on the time."""
    WORK.mkdir(exist_ok=True)
    probe = WORK / f"clock-{os.getpid()}"
    probe.touch()
    skew_s = probe.stat().st_mtime - time.time()
    probe.unlink()
    line = f"clock: files are {abs(skew_s):.1f} s {'ahead' if skew_s > 0 else 'behind'}"
    do = "set both clocks by NTP, or curves will be out of order"
    yield ok(line) if abs(skew_s) <= MAX_SKEW_S else warning(f"{line}; {do}")
