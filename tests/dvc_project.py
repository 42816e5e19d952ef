"""A repository of its own with some of the pipeline's stages, by git and DVC as a person has it."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from dinov2.params import read_yaml

ROOT = Path(__file__).parents[1]
NO_SERVER = "http://127.0.0.1:9"  # refuses at once
IGNORED = ("inputs", "data", "work", "store", "mlruns", "mlartifacts", "mlflow.db*")


def environment() -> dict[str, str]:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    ours = {name: value for name, value in os.environ.items() if not name.startswith("DVC_")}
    quiet = {"DVC_NO_ANALYTICS": "1", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "OMP_NUM_THREADS": "1"}
    return {**ours, **quiet, "PATH": path, "PYTHONPATH": str(ROOT)}


def command(folder: Path, *words: str, timeout_s: float = 110) -> subprocess.CompletedProcess[str]:
    """Run a command in `folder`: `dvc`, `git` or one of our modules (`dinov2.store`)."""
    ours = [sys.executable, "-m", words[0], *words[1:]] if words[0] != "git" else list(words)
    return subprocess.run(
        ours, cwd=folder, env=environment(), capture_output=True, text=True, check=False, timeout=timeout_s
    )


def succeed(folder: Path, *words: str, timeout_s: float = 110) -> str:
    """The same; what it printed. Fails the test where it fails."""
    done = command(folder, *words, timeout_s=timeout_s)
    assert done.returncode == 0, f"{words}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def make_project(folder: Path, stages: dict[str, Any], *, tracking: str = NO_SERVER, **params: Any) -> None:
    """A repository with its first commit: these stages and their params, and those of `params.yaml` that all need."""
    folder.mkdir(parents=True, exist_ok=True)
    shipped = read_yaml(ROOT / "params.yaml")
    needed = {name: shipped[name] for name in ("inputs", "models", "gates", "store", "launch", "tracking")}
    needed["gates"] = {}
    needed["launch"] = {**needed["launch"], "cluster": "local"}  # pyright: ignore[reportGeneralTypeIssues]
    quick = {"uri": tracking, "ship_every_s": 0.2, "idle_s": 1.0}
    needed["tracking"] = {**needed["tracking"], **quick}  # pyright: ignore[reportGeneralTypeIssues]
    with (folder / "params.yaml").open("w") as stream:
        YAML().dump({**needed, **params}, stream)
    (folder / "dvc.yaml").write_text(json.dumps({"stages": stages}))
    (folder / "tasks").mkdir()
    for stage in {name.partition("@")[0] for name in stages}:  # VERSION is read from there
        (folder / "tasks" / f"{stage}.py").write_bytes((ROOT / "tasks" / f"{stage}.py").read_bytes())
    (folder / ".gitignore").write_text("".join(f"/{name}\n" for name in IGNORED))
    succeed(folder, "git", "init", "--quiet")
    succeed(folder, "git", "config", "user.email", "a@b.example")
    succeed(folder, "git", "config", "user.name", "a")
    succeed(folder, "dvc", "init", "--quiet")
    succeed(folder, "git", "add", ".")
    succeed(folder, "git", "commit", "--quiet", "--message", "stages")


def shipped_stages(*names: str) -> dict[str, Any]:
    """Stages as dvc.yaml has them."""
    stages: dict[str, Any] = read_yaml(ROOT / "dvc.yaml")["stages"]  # pyright: ignore[reportAssignmentType]
    return {name: stages[name] for name in names}
