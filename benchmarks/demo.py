"""Time, memory and disk of the demo on this machine, as a Markdown table.

Run:   python benchmarks/demo.py [--keep]       (from the repository's root; without --keep it starts from nothing)

It runs `make demo`, watches the memory of every process that belongs to it (proportional set size, so that shared
pages count once), then `dvc repro` with nothing changed. A stage's orchestration is the wall time of its Prefect task
less the time its own work took inside the job.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil

GIB = 2**30
SAMPLE_S = 0.5
MADE = ("data", "work", "store", "inputs/demo", "mlflow.db", "mlartifacts", "dvc.lock", ".dvc/cache", ".dvc/tmp")


def memory_bytes(root: psutil.Process) -> int:
    """Proportional set size of a process and all below it."""
    total = 0
    for process in [root, *root.children(recursive=True)]:
        try:
            total += process.memory_full_info().pss
        except psutil.Error:
            continue
    return total


def watched(command: list[str]) -> tuple[int, float, int]:
    """Run a command; returns its exit code, wall seconds and peak memory in bytes."""
    started = time.perf_counter()
    process = subprocess.Popen(command)
    root = psutil.Process(process.pid)
    peak = [0]
    ended = threading.Event()

    def sample() -> None:
        while not ended.wait(SAMPLE_S):
            try:
                peak[0] = max(peak[0], memory_bytes(root))
            except psutil.Error:
                return

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    code = process.wait()
    seconds = time.perf_counter() - started
    ended.set()
    thread.join()
    return code, seconds, peak[0]


def own_seconds(stage: str) -> tuple[float, int]:
    """Seconds the newest jobs of a stage worked, and how many DVC stages that was (a matrix has several)."""
    instances = [path for path in Path("work").iterdir() if path.name.split("@")[0] == stage]
    newest = [max(path.glob("*/run.json"), key=os.path.getmtime) for path in instances if list(path.glob("*/run.json"))]
    return sum(json.loads(path.read_text())["seconds"] for path in newest), len(newest)


def stage_rows() -> list[str]:
    """Table rows: stage, wall, work, orchestration a DVC stage."""
    rows = []
    for line in Path("work/flow.jsonl").read_text().splitlines():
        timing = json.loads(line)
        work, number = own_seconds(timing["stage"])
        overhead = (timing["seconds"] - work) / number
        rows.append(f"| {timing['stage']} | {timing['seconds']:.1f} | {work:.1f} | {number} | {overhead:.1f} |")
    return rows


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", action="store_true", help="keep what earlier runs made: measures what is left to do")
    if not parser.parse_args().keep:
        for name in MADE:
            path = Path(name)
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
    code, seconds, peak = watched(["make", "demo"])
    if code != 0:
        return code
    again_code, again_seconds, _ = watched([sys.executable, "-m", "dvc", "repro"])
    disk = subprocess.run(["du", "-sk", ".venv"], capture_output=True, text=True, check=True).stdout.split()[0]
    lines = [
        f"{psutil.cpu_count()} cores, {psutil.virtual_memory().total / GIB:.0f} GiB, Python {sys.version.split()[0]}",
        "",
        "| what | measured | bound |",
        "|---|---|---|",
        f"| make demo, after installation | {seconds / 60:.1f} min | 10 min |",
        f"| its peak memory | {peak / GIB:.1f} GiB | 6 GiB |",
        f"| dvc repro, nothing changed (exit {again_code}) | {again_seconds:.1f} s | 15 s |",
        f"| virtual environment | {int(disk) / 1e6:.2f} GB | 3 GB |",
        "",
        "| stage | wall s | its own work s | DVC stages | orchestration s a DVC stage (bound 5) |",
        "|---|---|---|---|---|",
        *stage_rows(),
    ]
    text = "\n".join(lines) + "\n"
    print(text)
    Path("benchmarks/results/demo.md").write_text(f"Printed by `python benchmarks/demo.py`.\n\n{text}")
    return again_code


if __name__ == "__main__":
    sys.exit(main())
