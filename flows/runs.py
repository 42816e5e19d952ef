"""Flow runs of this workspace: one at a time, each with a record on disk by which a dead one is found and taken up.

`work/flow.lock` is held by the process of the run, so the kernel frees it however that process ends. The record,
`work/flows/<id of the flow run>.json`, is written by that process and removed by `settle` when Prefect knows the end.
"""

import fcntl
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from dinov2.params import InputError, Params, validate
from dinov2.records import read_json, write_json
from dinov2.store.locking import UNSUPPORTED
from tasks.processes import living, start_time

RECORDS = Path("work/flows")
LOCK = Path("work/flow.lock")

log = logging.getLogger("flows")


class FlowRecord(Params):
    """A flow run that began in this workspace."""

    flow_run_id: str
    name: str
    flow: str
    host: str
    pid: int
    started: float
    """When its process started, since process numbers are used again: seconds after the machine did."""
    again: int
    """So often the run was taken up before."""
    done: list[str]
    """Stages that it brought up to date."""
    ended: str | None
    """The state it came to by itself, or was given by a person: COMPLETED, FAILED, CANCELLED; null: none yet."""
    sentence: str
    """Why."""

    @property
    def path(self) -> Path:
        """Where it lies."""
        return RECORDS / f"{self.flow_run_id}.json"

    def process(self) -> psutil.Process | None:
        """The run's process, if it still lives."""
        return living(self.pid, self.started)


def read_records() -> list[FlowRecord]:
    """Records of this machine's runs that are not settled."""
    known = [(path, read_json(path)) for path in RECORDS.glob("*.json")]
    found = [validate(FlowRecord, told, where=str(path)) for path, told in known if told is not None]
    return sorted((record for record in found if record.host == socket.gethostname()), key=lambda one: one.started)


def note(record: FlowRecord, **changes: object) -> FlowRecord:
    """The record with some values changed, on disk too; an end that was noted before stays."""
    if (told := read_json(record.path)) is not None:
        record = validate(FlowRecord, told, where=str(record.path))
    if record.ended is not None:
        changes.pop("ended", None)
        changes.pop("sentence", None)
    record = record.model_copy(update=changes)
    write_json(record.path, record.model_dump())
    return record


def forget(flow_run_id: str) -> None:
    """Remove the record of a run whose end Prefect knows."""
    (RECORDS / f"{flow_run_id}.json").unlink(missing_ok=True)


def new_record(flow_run_id: str, name: str, flow: str, again: int) -> FlowRecord:
    """A record of this very process."""
    return FlowRecord(
        flow_run_id=flow_run_id,
        name=name,
        flow=flow,
        host=socket.gethostname(),
        pid=os.getpid(),
        started=start_time(os.getpid()),
        again=again,
        done=[],
        ended=None,
        sentence="",
    )


@contextmanager
def only_flow(record: FlowRecord) -> Iterator[None]:
    """Hold the workspace; raises InputError, naming the run that has it, where another flow runs in it."""
    RECORDS.mkdir(parents=True, exist_ok=True)
    with LOCK.open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            lock.seek(0)
            holder = lock.read().strip() or "another flow"
            what_to_do = "wait for it, or cancel it, and start this again"
            raise InputError(f"{holder} runs in this workspace; {what_to_do}") from error
        except OSError as error:
            if error.errno not in UNSUPPORTED:
                raise
            log.warning("%s can't be locked (%s): start no other flow in this workspace", LOCK, error.strerror)
        lock.truncate(0)
        stop = f"prefect flow-run cancel {record.flow_run_id}"
        lock.write(f"{record.flow} run '{record.name}' (process {os.getpid()} on {record.host}; `{stop}`)")
        lock.flush()
        write_json(record.path, record.model_dump())
        yield
