"""The demo's pipeline on four SLURM nodes, through `prefect deployment run`, disturbed twice: is the outcome the same?

Run:   PYTHONPATH=tests python -m benchmarks.demo_on_cluster --local FOLDER    (as root; Debian's slurmctld, slurmd,
       slurm-client and munge)

FOLDER is a checkout in which `make demo` has run to its end, at the same commit. In a clone of it every stage is a
SLURM job. While embed runs, the node it runs on loses power; while pretrain runs, an urgent job takes all nodes. Then
every file below data/ is compared with FOLDER's.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from slurm_lab import Cluster, wait

from dinov2.params import read_yaml

PATIENCE_S = 1800.0


def clone(local: Path, folder: Path) -> None:
    """A clone of `local` with its environment and inputs, whose stages are SLURM jobs."""
    subprocess.run(["git", "clone", "-q", local, folder], check=True)
    (folder / ".venv").symlink_to(Path(sys.executable).parents[1])
    subprocess.run(["cp", "-r", local / "inputs", folder], check=True)
    params = folder / "params.yaml"
    params.write_text(params.read_text().replace("  cluster: local ", "  cluster: slurm "))
    assert read_yaml(params)["launch"]["cluster"] == "slurm"  # pyright: ignore[reportIndexIssue, reportOptionalSubscript]


def node_of(job: str) -> str:
    """The node that a job with this name runs on; empty if none does."""
    command = ["squeue", "--noheader", f"--name={job}", "--states=RUNNING", "--format=%N"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def restarts(folder: Path, stage: str) -> list[str]:
    """For each job of a stage, how often SLURM started it again."""
    paths = folder.glob(f"work/{stage}/*/job*/job.json")
    numbers = [about["job_id"] for path in paths for about in json.loads(path.read_text())]
    show = [["scontrol", "show", "job", "--oneliner", number] for number in numbers]
    said = [subprocess.run(command, check=True, capture_output=True, text=True).stdout for command in show]
    return [text.partition("Restarts=")[2].split()[0] for text in said]


def differing(here: Path, there: Path) -> list[str]:
    """Files below data/ that differ between two checkouts, or that one lacks."""
    names = {
        path.relative_to(root / "data").as_posix()
        for root in (here, there)
        for path in (root / "data").rglob("*")
        if path.is_file()
    }
    pairs = {name: (here / "data" / name, there / "data" / name) for name in sorted(names)}
    same = {name for name, (a, b) in pairs.items() if a.exists() and b.exists() and a.read_bytes() == b.read_bytes()}
    return [name for name in pairs if name not in same]


def disturbed(folder: Path, cluster: Cluster) -> float:
    """Run the deployment, cut the power under embed and take pretrain's nodes; returns seconds."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(folder)}

    def call(*command: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, "-m", *command], cwd=folder, env=environment)

    def until(what: str, condition: Callable[[], object]) -> None:
        wait(lambda: condition() or running.poll() is not None, what, PATIENCE_S)
        assert running.poll() is None, f"the flow ended before {what}"

    assert call("flows.serve", "up").wait() == 0
    started = time.monotonic()
    prefect = [str(Path(sys.executable).with_name("prefect")), "deployment", "run", "full-pipeline", "--watch"]
    running = subprocess.Popen(prefect, cwd=folder, env=environment)
    try:
        until("embed runs", lambda: node_of("embed"))
        node = node_of("embed")
        cluster.node("kill", node)
        until("embed is started again", lambda: restarts(folder, "embed") == ["1"])
        cluster.node("start", node)
        until("pretrain has made some steps", lambda: list(folder.glob("work/pretrain/*/checkpoints/*")))
        urgent = ["sbatch", "--partition=urgent", "--nodes=4", "--exclusive", "--output=/dev/null", "--wrap=sleep 2"]
        subprocess.run(urgent, check=True)
        assert running.wait(PATIENCE_S) == 0
    finally:
        call("flows.serve", "down").wait()
    return time.monotonic() - started


def main() -> int:
    """Print the table; exit code 1 if an artifact differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--local", type=Path, required=True)
    local = parser.parse_args().local.absolute()
    with tempfile.TemporaryDirectory() as name:
        cluster = Cluster(Path(name) / "slurm")
        cluster.up()
        folder = Path(name) / "clone"
        try:
            clone(local, folder)
            took_s = disturbed(folder, cluster)
            again = {stage: restarts(folder, stage) for stage in ("embed", "pretrain")}
        finally:
            cluster.down()
        different = differing(local, folder)
        num_files = sum(path.is_file() for path in (folder / "data").rglob("*"))
    print("| what | found |\n|---|---|")
    print(f"| `prefect deployment run full-pipeline` on four nodes | ended well after {took_s / 60:.1f} min |")
    print(f"| times SLURM started the jobs of embed again (power cut) | {', '.join(again['embed'])} |")
    print(f"| times SLURM started the job of pretrain again (preempted) | {', '.join(again['pretrain'])} |")
    print(f"| files below data/ that equal the local run's | {num_files - len(different)} of {num_files} |")
    print(f"| files that differ | {', '.join(different) or 'none'} |")
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
