"""Tracking servers that are down, slow, read-only or locked: nothing is lost, all is shipped later, once, and told."""

import json
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from tracked_runs import add_rows, finish, runs_of, stage, tracking

from tasks.server import TrackingParams
from tasks.tracked import TROUBLE, WORK, ship_from_copy
from tasks.tracking import OUTAGES, main, ship, standing, told

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:sqlalchemy", "ignore::DeprecationWarning:mlflow")
ROOT = Path(__file__).parents[2]


class Door(BaseHTTPRequestHandler):
    """Lets requests through to `behind`, or does not, as `mode` says."""

    mode = "open"  # open | slow | or the number of an error
    delay_s = 0.0
    behind = ""

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        pass

    def handle_one_request(self) -> None:
        """Every method alike, with its body."""
        self.raw_requestline = self.rfile.readline(65537)
        if not self.raw_requestline or not self.parse_request():
            self.close_connection = True
            return
        self.pass_on()
        self.wfile.flush()

    def pass_on(self) -> None:
        """To the server behind, if the mode lets it."""
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.mode.isdigit() and not (self.mode == "403" and self.command == "GET"):  # reading is allowed
            self.answer(int(self.mode), b'{"error_code": "PERMISSION_DENIED", "message": "not now"}')
            return
        if self.mode == "slow" and self.path.endswith(("/create", "/log-inputs")):  # all of them would take minutes
            time.sleep(self.delay_s)
        headers = {key: value for key, value in self.headers.items() if key.lower() not in ("host", "content-length")}
        request = urllib.request.Request(self.behind + self.path, body or None, headers, method=self.command)
        try:
            with urllib.request.urlopen(request) as response:
                self.answer(response.status, response.read())
        except urllib.error.HTTPError as error:
            self.answer(error.code, error.read())

    def answer(self, status: int, body: bytes) -> None:
        """With a JSON body."""
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@contextmanager
def door() -> Iterator[str]:
    """The address of a Door."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Door) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def two_stages() -> None:
    """A training and an evaluation that have ended."""
    trained = stage("pretrain", models=["pretrain"])
    add_rows(trained.work, range(3))
    finish(trained, {"final": 0.5}, Path("data/pretrain"))
    finish(stage("evaluate", model="pretrain"), {"knn_top1": 0.5}, Path("data/evaluate"))


def check_all_is_there_once(given: TrackingParams) -> None:
    server, runs = runs_of(given)
    names = {("stage", "pretrain"), ("model", "pretrain"), ("stage", "evaluate"), ("model", "evaluate@pretrain")}
    assert set(runs) == names
    history = server.client.get_metric_history(runs["model", "pretrain"].info.run_id, "total")
    assert [point.step for point in history] == [0, 1, 2]
    assert {run.info.status for run in runs.values()} == {"FINISHED"}


def check_replay_is_told(given: TrackingParams) -> None:
    [line] = (WORK / OUTAGES).read_text().splitlines()
    outage = json.loads(line)
    assert (outage["runs"], outage["points"], outage["files"]) == (4, 7, 0)
    assert "s in which it took nothing, 4 runs, 7 points and 0 files were shipped" in told(given, WORK)
    assert not (WORK / TROUBLE).exists()


def make_read_only(path: Path) -> Callable[[], None]:
    """By the byte of the file that says who may write: it holds for root, too."""

    def write(version: bytes) -> None:
        with path.open("r+b") as stream:
            stream.seek(18)
            stream.write(version)

    before = path.read_bytes()[18:19]
    write(b"\x03")
    return lambda: write(before)


def lock(path: Path) -> Callable[[], None]:
    """As another program that writes."""
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("BEGIN EXCLUSIVE")
    return connection.close


@pytest.mark.parametrize(("break_it", "says"), [(make_read_only, "readonly"), (lock, "locked")])
def test_a_file_that_takes_nothing_is_given_all_later(
    given: TrackingParams, break_it: Callable[[Path], Callable[[], None]], says: str
) -> None:
    two_stages()
    mend = break_it(Path("mlflow.db"))
    for _ in range(2):
        sentence = ship(given, WORK)
        assert sentence is not None and says in sentence and "`python -m tasks.tracking`" in sentence
        assert json.loads((WORK / TROUBLE).read_text())["sentence"] == sentence
    assert standing(given, WORK) == (0, 0, 2)
    mend()
    assert ship(given, WORK) is None
    check_all_is_there_once(given)
    check_replay_is_told(given)
    assert ship(given, WORK) is None
    check_replay_is_told(given)


@pytest.mark.parametrize("mode", ["500", "403", "down"])
def test_a_server_that_takes_nothing_is_told_by_the_command_too(
    alone: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], mode: str
) -> None:
    monkeypatch.setattr(Door, "mode", mode)
    two_stages()
    with door() as address:
        if mode == "403":  # of its answers to reading it needs one
            monkeypatch.setattr(Door, "mode", "401")
        given = address if mode != "down" else "http://127.0.0.1:9"
        (alone / "params.yaml").write_text(
            f"tracking: {{uri: '{given}', experiment: tests, ship_every_s: 0.1, idle_s: 1.0}}\n"
        )
        for arguments in ([], ["--compare"]):
            assert main(arguments) == 1
            [told] = capsys.readouterr().err.splitlines()
            assert told.startswith(f"tracking: tracking server {given} can't be reached or takes nothing (")
    assert standing(tracking(given), WORK) == (0, 0, 2)


def test_an_experiment_in_a_copy_leaves_what_a_server_did_not_take_to_the_repository(
    given: TrackingParams, alone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = alone / ".dvc/tmp/exps/standalone/tmpab"
    copy.mkdir(parents=True)
    (copy / "params.yaml").write_text(
        "tracking: {uri: 'http://127.0.0.1:9', experiment: tests, ship_every_s: 0.1, idle_s: 1.0}\n"
    )
    monkeypatch.chdir(copy)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    (copy / "data/pretrain/figures").mkdir(parents=True)
    (copy / "data/pretrain/figures/losses.png").write_text("a picture")
    two_stages()
    ship_from_copy()
    monkeypatch.chdir(alone)
    shutil.rmtree(copy)
    assert standing(given, WORK) == (0, 0, 2)
    assert ship(given, WORK) is None
    check_all_is_there_once(given)
    server, runs = runs_of(given)
    assert [item.path for item in server.client.list_artifacts(runs["model", "pretrain"].info.run_id)] == ["figures"]


def test_a_stage_does_not_wait_for_a_server_that_never_answers(tmp_path: Path) -> None:
    pages = tmp_path / "pages"
    pages.mkdir()
    (pages / "a.html").write_text('<html><body><img src="http://a.example/1.jpg"></body></html>')
    with socket.create_server(("127.0.0.1", 0)) as silent:
        uri = f"http://127.0.0.1:{silent.getsockname()[1]}"
        text = (ROOT / "params.yaml").read_text().replace("sqlite:///mlflow.db", uri)
        text = text.replace("idle_s: 30.0", "idle_s: 0.1")
        (tmp_path / "params.yaml").write_text(text)
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "MLFLOW_HTTP_REQUEST_TIMEOUT": "2"}
        command = [sys.executable, "-m", "tasks.crawl", "--crawl", "pages", "--out", "out"]
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=100
        )
        assert done.returncode == 0, done.stderr
        mark = json.loads(next(tmp_path.glob("work/crawl/*/tracking.json")).read_text())
        assert mark["status"] == "FINISHED"
        assert list(tmp_path.glob("work/crawl/*/system.jsonl"))
        assert list(tmp_path.glob("work/crawl/*/starts/*.jsonl"))
        while not (tmp_path / "work" / TROUBLE).exists():  # the background process ends by itself after it
            time.sleep(0.1)


@pytest.fixture
def real_server(alone: Path) -> Iterator[str]:
    """MLflow's own server, with its own store."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    store = [f"--backend-store-uri=sqlite:///{alone}/server.db", f"--artifacts-destination={alone}/served"]
    command = [sys.executable, "-m", "mlflow", "server", f"--port={port}", "--workers=1", *store]
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with (alone / "server.log").open("w") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
                break
            except OSError:
                time.sleep(0.5)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, 15)
        process.wait()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_server_that_comes_back_is_given_all_once(real_server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Door, "behind", real_server)
    two_stages()
    with door() as address:
        given = tracking(address)
        for mode in ("500", "403"):
            monkeypatch.setattr(Door, "mode", mode)
            assert ship(given, WORK) is not None
        monkeypatch.setattr(Door, "mode", "slow")
        monkeypatch.setattr(Door, "delay_s", 5.0)
        began = time.monotonic()
        assert ship(given, WORK) is None
        assert time.monotonic() - began > 25
        monkeypatch.setattr(Door, "mode", "open")
        check_all_is_there_once(given)
        check_replay_is_told(given)
