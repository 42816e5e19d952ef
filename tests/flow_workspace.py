"""A workspace whose stages take no time and whose DVC, Prefect and processes are real."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
from ruamel.yaml import YAML

from dinov2.params import read_yaml

ROOT = Path(__file__).resolve().parents[1]
MODELS = {"random": "pretrain", "pretrain": "pretrain", "demo-s": "distill/demo-s"}


def free_port() -> int:
    """A port of loopback that nobody has now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def make_workspace(folder: Path, **flows: Any) -> None:
    """params.yaml and dvc.yaml as ours, but for stages that are `fake_stage.py`; `flows` changes that section."""
    yaml = YAML()
    params: Any = read_yaml(ROOT / "params.yaml")
    params["models"] = MODELS
    params["flows"] |= {"retry_delay_s": 0.1, **flows}
    params["inputs"] = {name: f"inputs/{name}" for name in params["inputs"]}
    yaml.dump(params, folder / "params.yaml")
    pipeline: Any = read_yaml(ROOT / "dvc.yaml")
    for name, entry in pipeline["stages"].items():
        body = entry.get("do", entry)
        instance = f"{name}@${{key}}" if "foreach" in entry else name
        body["cmd"] = f"{sys.executable} fake_stage.py {instance} {body['outs'][0]}"
        body["params"] = [name]
    del pipeline["metrics"], pipeline["plots"]
    yaml.dump(pipeline, folder / "dvc.yaml")
    for name in ("crawl", "seeds", "evaluation"):
        (folder / "inputs" / name).mkdir(parents=True)
        (folder / "inputs" / name / "x").write_text(name)
    shutil.copy(Path(__file__).with_name("fake_stage.py"), folder)
    shutil.copy(ROOT / "pyproject.toml", folder)
    behave(folder)
    subprocess.run([sys.executable, "-m", "dvc", "init", "-q", "--no-scm"], cwd=folder, check=True)


def behave(folder: Path, **behaviour: Any) -> None:
    """How the stages behave from now on: see fake_stage.py."""
    (folder / "behaviour.json").write_text(json.dumps(behaviour))


def events(folder: Path) -> list[dict[str, Any]]:
    """What the stages noted."""
    path = folder / "events.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def until(what: Callable[[], Any], patience_s: float, about: str) -> Any:
    """What `what` says as soon as it is something."""
    deadline = time.monotonic() + patience_s
    while time.monotonic() < deadline:
        if found := what():
            return found
        time.sleep(0.2)
    raise AssertionError(f"{about}: not within {patience_s} s")


class Prefect:
    """Our server and deployments in a workspace, on a port of their own.

    with Prefect(folder) as prefect:
        prefect.command("deployment", "run", "dedup")
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.api = f"http://127.0.0.1:{free_port()}/api"
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        home = str(folder / "work/prefect")
        own = {"PREFECT_API_URL": self.api, "PREFECT_HOME": home, "PYTHONPATH": str(ROOT), "PATH": path}
        self.environment = {**os.environ, **own, "PREFECT_LOGGING_LEVEL": "INFO", "COLUMNS": "200"}

    def __enter__(self) -> "Prefect":
        code, text = self.serve("up")
        assert code == 0, text
        return self

    def __exit__(self, *_: object) -> None:
        self.serve("down")

    def serve(self, verb: str) -> tuple[int, str]:
        """`python -m flows.serve <verb>`."""
        return self._run([sys.executable, "-m", "flows.serve", verb])

    def command(self, *words: str) -> tuple[int, str]:
        """`prefect <words>`: exit code and what it said."""
        return self._run([str(Path(sys.executable).with_name("prefect")), *words])

    def _run(self, command: list[str]) -> tuple[int, str]:
        with (self.folder / "said.txt").open("w+") as said:  # a pipe would be held open by what `up` starts
            code = subprocess.run(
                command, cwd=self.folder, env=self.environment, stdout=said, stderr=said, check=False
            ).returncode
            said.seek(0)
            return code, said.read()

    def start(self, deployment: str, *options: str) -> str:
        """`prefect deployment run`; the new run's id."""
        code, text = self.command("deployment", "run", deployment, *options)
        assert code == 0, text
        found = re.search(r"UUID: ([0-9a-f-]{36})", text)
        assert found is not None, text
        return found.group(1)

    def get(self, path: str, body: dict[str, Any] | None = None) -> Any:
        """What the server answers."""
        from urllib.request import Request, urlopen

        data = None if body is None else json.dumps(body).encode()
        request = Request(f"{self.api}{path}", data, {"Content-Type": "application/json"})
        with urlopen(request, timeout=10) as answer:
            return json.load(answer)

    def state(self, run: str) -> dict[str, Any]:
        """The state of a flow run: type, name, message."""
        return self.get(f"/flow_runs/{run}")["state"]

    def ended(self, run: str, patience_s: float = 90) -> dict[str, Any]:
        """The last state of a flow run."""

        def final() -> dict[str, Any] | None:
            try:
                state = self.state(run)
            except OSError:  # the server is being started again
                return None
            return state if state["type"] in ("COMPLETED", "FAILED", "CANCELLED", "CRASHED") else None

        return until(final, patience_s, f"the end of {run}")

    def tasks(self, run: str) -> dict[str, str]:
        """State names of a run's tasks."""
        found = self.get("/task_runs/filter", {"flow_runs": {"id": {"any_": [run]}}})
        return {task["name"]: task["state"]["name"] for task in found}

    def log(self, run: str) -> str:
        """What the run said."""
        found = self.get("/logs/filter", {"logs": {"flow_run_id": {"any_": [run]}}, "sort": "TIMESTAMP_ASC"})
        return "\n".join(line["message"] for line in found)

    def process(self, run: str) -> psutil.Process:
        """The process of a run that has begun."""
        path = self.folder / "work/flows" / f"{run}.json"
        until(path.exists, 60, f"the record of {run}")
        return psutil.Process(json.loads(path.read_text())["pid"])

    def kill(self, name: str) -> None:
        """kill -9 of the `server` or of what serves the `deployments`; not of their children."""
        pid = json.loads((self.folder / f"work/prefect/{name}.json").read_text())["pid"]
        os.kill(pid, signal.SIGKILL)
