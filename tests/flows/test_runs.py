"""One flow at a time in a workspace, and what becomes of runs whose process is gone."""

import errno
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import UUID, uuid4

import psutil
import pytest
from prefect.client.schemas.objects import State, StateType
from prefect.exceptions import ObjectNotFound

from dinov2.params import InputError
from dinov2.records import write_json
from flows.runs import FlowRecord, new_record, note, only_flow, read_records
from flows.settle import settle, times_taken_up
from tasks.processes import start_time

HOLDER = """
import sys, time
from flows.runs import new_record, only_flow
with only_flow(new_record("11111111-1111-1111-1111-111111111111", "amber-fox", "full-pipeline", 0)):
    print("up", flush=True)
    time.sleep(60)
"""


class Server:
    """Prefect's server, as far as `settle` asks it."""

    def __init__(self) -> None:
        self.runs: dict[UUID, SimpleNamespace] = {}
        self.created: list[dict[str, Any]] = []

    def add(self, state: StateType, *, deployed: bool = True, age_s: float = 0.0, **parameters: Any) -> UUID:
        """A flow run in that state."""
        run = SimpleNamespace(id=uuid4(), name="amber-fox", tags=[], parameters=parameters)
        run.deployment_id = uuid4() if deployed else None
        run.state = State(type=state, timestamp=datetime.now(UTC) - timedelta(seconds=age_s))
        self.runs[run.id] = run
        return run.id

    def read_flow_run(self, run_id: UUID) -> SimpleNamespace:
        """As the client's."""
        if run_id not in self.runs:
            raise ObjectNotFound(Exception("404"))
        return self.runs[run_id]

    def read_flow_runs(self, **_: Any) -> list[SimpleNamespace]:
        """Those that are pending: the only ones `settle` asks for."""
        return [run for run in self.runs.values() if run.state.type == StateType.PENDING]

    def set_flow_run_state(self, run_id: UUID, state: State, *, force: bool) -> None:
        """As the client's."""
        assert force
        self.runs[run_id].state = state

    def create_flow_run_from_deployment(self, deployment_id: UUID, **options: Any) -> SimpleNamespace:
        """As the client's."""
        self.created.append({"deployment_id": deployment_id, **options})
        return SimpleNamespace(id=uuid4(), name=options["name"])


@pytest.fixture
def workspace(tmp_path: Path, repository: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty workspace with our params, in which the test stands."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").write_text((repository / "params.yaml").read_text())
    return tmp_path


def gone(run_id: UUID, **values: Any) -> FlowRecord:
    """The record of a run whose process is gone: this one's number, of another start."""
    record = new_record(str(run_id), "amber-fox", "full-pipeline", 0)
    record = record.model_copy(update={"started": record.started - 1, **values})
    record.path.parent.mkdir(parents=True, exist_ok=True)
    write_json(record.path, record.model_dump())
    return record


def settled(server: Server) -> None:
    """What two looks make of it."""
    client: Any = server
    settle(client, settle(client, set()))


def test_a_second_flow_is_refused_with_the_name_of_the_first_until_that_is_gone(
    workspace: Path, repository: Path
) -> None:
    environment = {"PYTHONPATH": str(repository)}
    holder = subprocess.Popen([sys.executable, "-c", HOLDER], stdout=subprocess.PIPE, env=environment, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "up\n"
    mine = new_record(str(uuid4()), "blue-owl", "dedup", 0)
    with pytest.raises(InputError) as refused, only_flow(mine):
        pass
    assert f"full-pipeline run 'amber-fox' (process {holder.pid} on" in str(refused.value)
    assert "prefect flow-run cancel 11111111-1111-1111-1111-111111111111" in str(refused.value)
    assert not mine.path.exists()
    holder.kill()
    holder.wait()
    holder.stdout.close()
    with only_flow(mine):
        records = {record.name: record.process() for record in read_records()}
    assert records == {"amber-fox": None, "blue-owl": psutil.Process()}


def test_where_files_cannot_be_locked_a_flow_says_so_and_runs(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def flock(*_: object) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", flock)
    with only_flow(new_record(str(uuid4()), "blue-owl", "dedup", 0)):
        assert len(read_records()) == 1
    assert "work/flow.lock can't be locked (Function not implemented)" in caplog.text


def test_an_end_that_was_noted_stays(workspace: Path) -> None:
    record = gone(uuid4())
    note(record, ended="CANCELLED", sentence="by a person")
    note(record, done=["crawl"])
    note(record, ended="FAILED", sentence="and so it failed")
    [found] = read_records()
    assert (found.ended, found.sentence, found.done) == ("CANCELLED", "by a person", ["crawl"])


@pytest.mark.parametrize("state", [StateType.RUNNING, StateType.CRASHED, StateType.PENDING])
def test_a_run_whose_process_died_is_taken_up_once(workspace: Path, state: StateType) -> None:
    server = Server()
    run = server.add(state, stop_at="dedup", force=["crawl", "embed"])
    gone(run, done=["crawl", "download"])
    settled(server)
    assert server.runs[run].state.type == StateType.CRASHED
    [created] = server.created
    assert created["parameters"] == {"stop_at": "dedup", "force": ["embed"]}
    assert created["name"] == "amber-fox-1"
    assert times_taken_up(set(created["tags"])) == 1
    assert read_records() == []
    settled(server)
    assert len(server.created) == 1


def test_a_stage_that_was_done_by_force_is_not_forced_again(workspace: Path) -> None:
    server = Server()
    for done in ([], ["dedup"]):
        gone(server.add(StateType.RUNNING, name="dedup", force=True), done=done)
    settled(server)
    assert sorted(created["parameters"]["force"] for created in server.created) == [False, True]


def test_a_run_that_was_taken_up_often_enough_or_has_no_deployment_only_ends(workspace: Path) -> None:
    server = Server()
    again, by_hand = server.add(StateType.RUNNING), server.add(StateType.RUNNING, deployed=False)
    gone(again, again=1)
    gone(by_hand)
    settled(server)
    assert server.created == []
    for run in (again, by_hand):
        assert server.runs[run].state.type == StateType.CRASHED
        assert "start it again" in str(server.runs[run].state.message)


@pytest.mark.parametrize("state", [StateType.CANCELLING, StateType.CANCELLED, StateType.COMPLETED, StateType.FAILED])
def test_what_a_person_cancelled_or_what_ended_is_not_taken_up(workspace: Path, state: StateType) -> None:
    server = Server()
    run = server.add(state)
    gone(run)
    settled(server)
    assert server.created == []
    assert server.runs[run].state.type == (StateType.CANCELLED if state == StateType.CANCELLING else state)
    assert read_records() == []


@pytest.mark.parametrize("ended", ["COMPLETED", "FAILED", "CANCELLED"])
def test_an_end_that_prefect_did_not_hear_of_is_told(workspace: Path, ended: str) -> None:
    server = Server()
    run = server.add(StateType.CRASHED)
    gone(run, ended=ended, sentence="why")
    settled(server)
    assert (server.runs[run].state.type.value, server.runs[run].state.message) == (ended, "why")
    assert server.created == []


def test_a_run_that_prefect_does_not_know_is_forgotten_and_one_that_lives_is_left(workspace: Path) -> None:
    server = Server()
    gone(uuid4())
    alive = server.add(StateType.RUNNING)
    record = new_record(str(alive), "blue-owl", "curation", 0)
    write_json(record.path, record.model_dump())
    settled(server)
    assert [found.name for found in read_records()] == ["blue-owl"]
    assert server.runs[alive].state.type == StateType.RUNNING


def test_whoever_started_the_process_has_time_to_tell_of_its_end(workspace: Path) -> None:
    server = Server()
    run = server.add(StateType.RUNNING)
    gone(run)
    client: Any = server
    assert settle(client, set()) == {str(run)}
    assert server.runs[run].state.type == StateType.RUNNING


def test_a_cancelled_run_whose_starter_is_gone_is_ended(workspace: Path) -> None:
    server = Server()
    start = "import subprocess, sys; print(subprocess.Popen(['sleep', '60'], stdout=-3, stderr=-3).pid)"
    answer = subprocess.run([sys.executable, "-c", start], capture_output=True, text=True, check=True)
    orphan = psutil.Process(int(answer.stdout))
    run = server.add(StateType.CANCELLING)
    gone(run, pid=orphan.pid, started=start_time(orphan.pid))
    client: Any = server
    dead = settle(client, set())
    deadline = time.monotonic() + 10
    while orphan.is_running() and orphan.status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    server.runs[run].state = State(type=StateType.CRASHED)  # as its engine says of a signal
    settle(client, settle(client, dead))
    assert server.runs[run].state.type == StateType.CANCELLED
    assert server.created == []


def test_a_run_that_was_made_ready_and_never_began_is_taken_up(workspace: Path) -> None:
    server = Server()
    young, old = server.add(StateType.PENDING, age_s=5), server.add(StateType.PENDING, age_s=3600)
    settled(server)
    assert server.runs[young].state.type == StateType.PENDING
    assert server.runs[old].state.type == StateType.CRASHED
    assert [created["idempotency_key"] for created in server.created] == [f"{old}-taken-up"]
