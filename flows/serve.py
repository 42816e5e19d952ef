"""Prefect's server and our deployments, on loopback, as background processes.

Run:   python -m flows.serve up        server, then deployments; both stay until `down`
       python -m flows.serve down
       python -m flows.serve run       the deployments in the foreground (what `up` starts)
       python -m flows.serve demo      server, `python -m flows.full_pipeline`, and the server down again if it was down

Deployments: full-pipeline, and one for every stage, e.g. `prefect deployment run dedup`.
"""

import asyncio
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import psutil

HOME = Path("work/prefect").absolute()
PORT = 4200
API = f"http://127.0.0.1:{PORT}/api"
START_PATIENCE_S = 90.0
QUIET = {"PREFECT_SERVER_ANALYTICS_ENABLED": "false", "DO_NOT_TRACK": "1", "PREFECT_RUNNER_POLL_FREQUENCY": "2"}


def _environment() -> dict[str, str]:
    home = {"PREFECT_HOME": str(HOME), "PREFECT_API_URL": API, "PREFECT_LOGGING_SERVER_LEVEL": "WARNING"}
    return {**os.environ, **home, **QUIET, "PYTHONUNBUFFERED": "1"}


def _start(name: str, command: list[str]) -> None:
    """Start a background process that outlives this one; its number is kept for `down`."""
    HOME.mkdir(parents=True, exist_ok=True)
    with (HOME / f"{name}.log").open("a") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=_environment(), start_new_session=True
        )
    started = psutil.Process(process.pid).create_time()
    (HOME / f"{name}.json").write_text(json.dumps({"pid": process.pid, "started": started}))


def _living(name: str) -> psutil.Process | None:
    path = HOME / f"{name}.json"
    if not path.exists():
        return None
    known = json.loads(path.read_text())
    try:
        process = psutil.Process(known["pid"])
        return process if process.create_time() == known["started"] else None
    except psutil.NoSuchProcess:
        return None


def _stop(name: str) -> None:
    process = _living(name)
    if process is not None:
        family = [process, *process.children(recursive=True)]
        for member in family:
            member.terminate()
        _, alive = psutil.wait_procs(family, timeout=10)
        for member in alive:
            member.kill()
    (HOME / f"{name}.json").unlink(missing_ok=True)


def _answers(path: str) -> bool:
    try:
        with urlopen(f"{API}{path}", timeout=2) as answer:
            return answer.status == 200
    except (URLError, OSError):
        return False


def _wait_for(path: str, what: str) -> None:
    deadline = time.monotonic() + START_PATIENCE_S
    while not _answers(path):
        if time.monotonic() > deadline:
            raise SystemExit(f"{what} did not answer at {API} within {START_PATIENCE_S:.0f} s; see {HOME}/*.log")
        time.sleep(0.2)


def start_server() -> bool:
    """Start the server unless one answers already; returns whether it was started here."""
    if _answers("/health"):
        return False
    prefect = str(Path(sys.executable).with_name("prefect"))
    _start("server", [prefect, "server", "start", "--host", "127.0.0.1", "--port", str(PORT)])
    _wait_for("/health", "the Prefect server")
    return True


def up() -> None:
    """Server and deployments."""
    start_server()
    if _living("deployments") is None:
        _start("deployments", [sys.executable, "-m", "flows.serve", "run"])
    _wait_for("/deployments/name/full-pipeline/full-pipeline", "the deployment full-pipeline")


def down() -> None:
    """Stop what `up` started."""
    for name in ("deployments", "server"):
        _stop(name)


async def _end_zombies() -> None:
    """Flow runs of ours that a killed process left as running are marked as crashed."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowFilter, FlowFilterName, FlowRunFilter
    from prefect.states import Crashed

    from flows.full_pipeline import STAGES

    stale = {"state": {"type": {"any_": ["RUNNING", "CANCELLING", "PENDING"]}}, "deployment_id": {"is_null_": False}}
    async with get_client() as client:
        names = FlowFilter(name=FlowFilterName(any_=["full-pipeline", *STAGES]))
        runs = await client.read_flow_runs(flow_filter=names, flow_run_filter=FlowRunFilter.model_validate(stale))
        for run in runs:
            crashed = Crashed(message="the process that ran it is gone; run it again and it goes on where it was")
            await client.set_flow_run_state(run.id, crashed, force=True)


def run() -> None:
    """Serve the deployments until stopped."""
    from prefect import Flow, serve
    from prefect.deployments.runner import RunnerDeployment

    from flows.full_pipeline import STAGES, full_pipeline, one_stage

    async def deployments() -> list[RunnerDeployment]:
        pipeline = await full_pipeline.ato_deployment("full-pipeline")
        stages = [Flow(one_stage.fn, name=name) for name in STAGES]
        singles = [await stage.ato_deployment(stage.name, parameters={"name": stage.name}) for stage in stages]
        return [pipeline, *singles]

    asyncio.run(_end_zombies())
    serve(*asyncio.run(deployments()))


def demo() -> int:
    """The pipeline once, with a server for its duration."""
    ours = start_server()
    try:
        return subprocess.run([sys.executable, "-m", "flows.full_pipeline"], env=_environment(), check=False).returncode
    finally:
        if ours:
            _stop("server")


def main() -> int:
    """The command line."""
    verb = sys.argv[1] if len(sys.argv) == 2 else ""
    if verb == "demo":
        return demo()
    if verb not in ("up", "down", "run"):
        sys.stderr.write("usage: python -m flows.serve up | down | run | demo\n")
        return 2
    {"up": up, "down": down, "run": run}[verb]()
    if verb == "up":
        sys.stdout.write(f"Prefect is at http://127.0.0.1:{PORT}; try: prefect deployment run full-pipeline --watch\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
