"""Prefect's server and our deployments, on loopback, as background processes.

Run:   python -m flows.serve up        server, then deployments; both stay until `down`
       python -m flows.serve down
       python -m flows.serve run       the deployments in the foreground (what `up` starts)
       python -m flows.serve demo      server, `python -m flows.full_pipeline`, and the server down again if it was down

Deployments: full-pipeline, curation, training, evaluation, and one for every stage: `prefect deployment run dedup`.
Schedules: `flows.schedules` in params.yaml. PREFECT_API_URL, Prefect's own variable, names another port or server.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from urllib.error import URLError
from urllib.parse import urlsplit
from urllib.request import urlopen

import psutil

from dinov2.params import InputError
from flows.params import load_flows_params
from flows.runs import note, read_records
from flows.stages import STAGES
from tasks.processes import living, start_time

HOME = Path("work/prefect").absolute()
API = os.environ.get("PREFECT_API_URL", "http://127.0.0.1:4200/api")
START_PATIENCE_S = 90.0
END_PATIENCE_S = 30.0  # in which a flow ends its stages, and they their jobs
QUIET = {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "1",
    "PREFECT_RUNNER_POLL_FREQUENCY": "2",
    "PREFECT_LOGGING_SERVER_LEVEL": "WARNING",
    # in memory, the default, a server that is started again would never free the places that were taken
    "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
}


def _environment() -> dict[str, str]:
    return {**os.environ, "PREFECT_HOME": str(HOME), "PREFECT_API_URL": API, **QUIET, "PYTHONUNBUFFERED": "1"}


def _start(name: str, command: list[str]) -> None:
    """Start a background process that outlives this one; its number is kept for `down`."""
    HOME.mkdir(parents=True, exist_ok=True)
    with (HOME / f"{name}.log").open("a") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=_environment(), start_new_session=True
        )
    started = start_time(process.pid)
    (HOME / f"{name}.json").write_text(json.dumps({"pid": process.pid, "started": started}))


def _living(name: str) -> psutil.Process | None:
    path = HOME / f"{name}.json"
    if not path.exists():
        return None
    known = json.loads(path.read_text())
    return living(known["pid"], known["started"])


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
    """Start the server unless one answers; returns whether it was started here. InputError: it is not ours to start."""
    if _answers("/health"):
        return False
    address = urlsplit(API)
    if address.hostname not in ("127.0.0.1", "localhost"):
        raise InputError(f"PREFECT_API_URL is {API}, which does not answer; start that server, or unset the variable")
    prefect = str(Path(sys.executable).with_name("prefect"))
    _start("server", [prefect, "server", "start", "--host", "127.0.0.1", "--port", str(address.port or 4200)])
    _wait_for("/health", "the Prefect server")
    return True


def up() -> None:
    """Server and deployments."""
    load_flows_params()  # a mistake is told here rather than in a log
    start_server()
    if _living("deployments") is None:
        _start("deployments", [sys.executable, "-m", "flows.serve", "run"])
    _wait_for(f"/deployments/name/{STAGES[-1]}/{STAGES[-1]}", "the last of the deployments")


def down() -> None:
    """Stop what `up` started, and the flows that run; a person wanted it so, so they are not taken up again."""
    stopped = []
    for record in read_records():
        process = record.process()
        if process is not None:
            note(record, ended="CANCELLED", sentence="stopped by `flows.serve down`; start it again and it goes on")
            process.terminate()
            stopped.append(process)
    psutil.wait_procs(stopped, timeout=END_PATIENCE_S)
    if stopped and _answers("/health"):
        _settle_now()
    for name in ("deployments", "server"):
        _stop(name)


def _settle_now() -> None:
    from prefect.client.orchestration import get_client

    from flows.settle import settle

    with get_client(sync_client=True) as client:
        settle(client, settle(client, set()))


def run() -> None:
    """Serve the deployments until stopped."""
    from flows.deployments import serve

    serve(_revive_server)


def _revive_server() -> None:
    """Start the server again if it is ours and died: flows that run find it again."""
    if (HOME / "server.json").exists() and _living("server") is None:
        start_server()


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
    if verb not in ("up", "down", "run", "demo"):
        sys.stderr.write("usage: python -m flows.serve up | down | run | demo\n")
        return 2
    try:
        code = {"up": up, "down": down, "run": run, "demo": demo}[verb]()
    except InputError as error:
        sys.stderr.write(f"flows.serve: {error}\n")
        return 2
    if verb == "up":
        pages = API.removesuffix("/api")
        sys.stdout.write(f"Prefect is at {pages}; try: prefect deployment run full-pipeline --watch\n")
    return code or 0


if __name__ == "__main__":
    sys.exit(main())
