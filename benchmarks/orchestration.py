"""What it costs to have SLURM run things: seconds to the first instruction, of a large array, and of a preemption.

Run:   PYTHONPATH=tests python -m benchmarks.orchestration    (as root; Debian's slurmctld, slurmd, slurm-client, munge)

On the test cluster of tests/cluster: four nodes that are one machine, so that starting Python on all of them at once is
what takes long. Seconds are of the wall clock, memory is the greatest of the submitting process. A part is empty here.
"""

import functools
import os
import platform
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from slurm_lab import SMALL, Cluster, Project, wait

from benchmarks.peak_memory import peak_bytes
from tasks.fan_out import Phase, make_parts
from tasks.launch import run_jobs
from tasks.resources import MAX_WORKERS, LaunchParams, Resources

NUM_PARTS = 1000
ROUNDS = 5


def count() -> int:
    """Parts of the array."""
    return NUM_PARTS


def nothing(part: int) -> None:
    """A part without work."""


PHASE = Phase("nothing", count, nothing)


def run(jobs: list[Any], folder: Path) -> list[list[Any]]:
    """Results of jobs on the cluster."""
    default = Resources(**{**SMALL, "workers": len(jobs), "max_running": MAX_WORKERS})
    launch = LaunchParams(cluster="slurm", save_s=20, max_timeouts=1, default=default, stages={})
    return run_jobs(
        jobs, stage="x", name="x", folder=folder, accept=lambda _: True, params=launch, show=lambda line: None
    )


def first_instruction(folder: Path) -> float:
    """Seconds from the call to the job's first instruction."""
    asked = time.time()
    [[started]] = run([time.time], folder)
    return started - asked


def large_array(folder: Path) -> float:
    """Seconds from the call to the results of an array that makes `NUM_PARTS` parts."""
    jobs = [
        functools.partial(make_parts, PHASE, {"work": folder}, first=worker, of=MAX_WORKERS)
        for worker in range(MAX_WORKERS)
    ]
    asked = time.perf_counter()
    run(jobs, folder / "job")
    assert len(list((folder / "made/nothing").iterdir())) == NUM_PARTS
    return time.perf_counter() - asked


def preemption(folder: Path) -> tuple[float, float]:
    """Seconds from the signal to the next step of a training, and how many of them it waited in SLURM's queue."""
    project = Project(folder)
    running = project.bootstrap(num_steps=2000)
    wait(lambda: project.last_step() > 20, "20 steps")
    asked = time.time()
    urgent = ["sbatch", "--partition=urgent", "--nodes=4", "--exclusive", "--output=/dev/null", "--wrap=true"]
    subprocess.run(urgent, check=True, stdout=subprocess.DEVNULL)
    (log,) = folder.glob("work/bootstrap/*/job/attempts/1/*_0_log.out")
    wait(lambda: log.read_text().count("Starting with JobEnvironment") == 2, "the second start")
    again = time.time()
    saved = project.last_step()
    wait(lambda: project.last_step() > saved, "the next step")
    took = time.time() - asked
    (number,) = project.jobs("bootstrap")
    about = subprocess.run(["scontrol", "show", "job", number], check=True, capture_output=True, text=True).stdout
    assert "Restarts=1" in about
    running.process.kill()
    subprocess.run(["scancel", number], check=True)
    running.end()
    ended = _ended(log)
    return took, again - ended


def _ended(log: Path) -> float:
    """When the first run was over: the time of its last line, which submitit writes."""
    lines = [line for line in log.read_text().splitlines() if "JOB REQUEUE" in line]
    return time.mktime(time.strptime(lines[0].split(" AT ")[1][:19], "%Y-%m-%dT%H:%M:%S"))


def main() -> None:
    """Print the table."""
    with tempfile.TemporaryDirectory() as name:
        cluster = Cluster(Path(name) / "slurm")
        cluster.up()
        version = subprocess.run(["sbatch", "--version"], check=True, capture_output=True, text=True).stdout.strip()
        try:
            firsts = sorted(first_instruction(Path(name) / f"first{number}") for number in range(ROUNDS))
            array_s = large_array(Path(name) / "array")
            (Path(name) / "project").mkdir()
            took_s, queued_s = preemption(Path(name) / "project")
        finally:
            cluster.down()
    memory_mb = peak_bytes() / 2**20
    print(f"{os.cpu_count()} cores, {platform.system()}, {version}, four nodes on this machine\n")
    print("| what | measured | at most |\n|---|---:|---:|")
    print(f"| submission to the job's first instruction, s (median of {ROUNDS}) | {firsts[ROUNDS // 2]:.2f} | 3 |")
    print(f"| array of {MAX_WORKERS} jobs that make {NUM_PARTS:,} empty parts, s | {array_s:.1f} | 60 |")
    print(f"| memory of the submitting process, MiB | {memory_mb:.0f} | 300 |")
    print(f"| preemption to the first step after it, without SLURM's queue, s | {took_s - queued_s:.1f} | 30 |")
    print(f"| SLURM's queue in between, s | {queued_s:.1f} | |")


if __name__ == "__main__":
    main()
