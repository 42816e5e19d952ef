"""Ends flow runs whose process is gone: told to Prefect, and taken up again where the process died.

Called by `flows.serve`, again and again. What is true of a process is asked of this machine, by the run's record; what
is true of the run, e.g. that a person cancelled it, is asked of Prefect's server.
"""

import logging
from datetime import timedelta
from uuid import UUID

import psutil
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import FlowFilter, FlowFilterName, FlowRunFilter
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.exceptions import ObjectNotFound
from prefect.states import Cancelled, Completed, Crashed, Failed
from prefect.types._datetime import now

from flows.params import load_flows_params
from flows.runs import FlowRecord, forget, note, read_records
from flows.stages import FLOWS, STAGES

AGAIN = "taken-up-"  # a tag: `taken-up-1` is a run that goes on for one whose process died
DIED = "its process died"
NEVER_BEGAN_S = 300.0  # a run is made ready and its process begins within seconds
ENDINGS = {"COMPLETED": Completed, "FAILED": Failed, "CANCELLED": Cancelled}
CANCELS = (StateType.CANCELLING, StateType.CANCELLED)

log = logging.getLogger("flows")


def times_taken_up(tags: set[str]) -> int:
    """How often the run with these tags was taken up before."""
    return max((int(tag.removeprefix(AGAIN)) for tag in tags if tag.startswith(AGAIN)), default=0)


def settle(client: SyncPrefectClient, seen_dead: set[str]) -> set[str]:
    """Settle what is dead, if it was among `seen_dead` already; returns the ids of those seen dead now.

    Seen twice, since whoever started the process also tells Prefect of its end, as soon as it sees it.
    """
    dead = set()
    for record in read_records():
        process = record.process()
        if process is not None:
            _end_if_cancelled(client, record, process)
        elif record.flow_run_id in seen_dead:
            _settle(client, record)
        else:
            dead.add(record.flow_run_id)
    _settle_never_begun(client)
    return dead


def _read(client: SyncPrefectClient, record: FlowRecord) -> FlowRun | None:
    try:
        return client.read_flow_run(UUID(record.flow_run_id))
    except ObjectNotFound:
        return None


def _end_if_cancelled(client: SyncPrefectClient, record: FlowRecord, process: psutil.Process) -> None:
    """A person cancelled a run whose starter is gone: nobody else would tell its process."""
    if process in psutil.Process().children(recursive=True):
        return
    run = _read(client, record)
    if run is not None and run.state is not None and run.state.type in CANCELS:
        note(record, ended="CANCELLED", sentence="cancelled")
        process.terminate()


def _settle(client: SyncPrefectClient, record: FlowRecord) -> None:
    run = _read(client, record)
    if run is not None and run.state is not None:
        _tell(client, record, run, run.state)
    forget(record.flow_run_id)


def _tell(client: SyncPrefectClient, record: FlowRecord, run: FlowRun, state: State) -> None:
    if record.ended is not None:
        if state.type.value != record.ended:  # it ended while no server answered, or by a signal
            _set(client, run, ENDINGS[record.ended](message=record.sentence))
    elif state.type in CANCELS:
        if state.type == StateType.CANCELLING:
            _set(client, run, Cancelled(message="cancelled"))
    elif state.type == StateType.CRASHED or not state.is_final():
        _take_up(client, run, record.again, record.done)


def _set(client: SyncPrefectClient, run: FlowRun, state: State) -> None:
    client.set_flow_run_state(run.id, state, force=True)


def _take_up(client: SyncPrefectClient, run: FlowRun, again: int, done: list[str]) -> None:
    """Call the run crashed and, unless it was taken up often enough, start another that goes on where it was."""
    may = load_flows_params().take_up_again
    if run.deployment_id is None or again >= may:
        by_hand = "start it again, and it goes on where it was"
        _set(client, run, Crashed(message=f"{DIED}; {by_hand}" if again == 0 else f"{DIED} once more; {by_hand}"))
        return
    parameters = dict(run.parameters)
    if isinstance(parameters.get("force"), list):  # not what has been done by force already
        parameters["force"] = [stage for stage in parameters["force"] if stage not in done]
    elif parameters.get("force") is True and done:
        parameters["force"] = False
    _set(client, run, Crashed(message=f"{DIED}; taken up again"))
    name = run.name.removesuffix(f"-{again}") if again else run.name
    following = client.create_flow_run_from_deployment(
        run.deployment_id,
        parameters=parameters,
        name=f"{name}-{again + 1}",
        tags=[f"{AGAIN}{again + 1}"],
        idempotency_key=f"{run.id}-taken-up",  # once, even if this is asked again after a failure half-way
    )
    log.warning("%s: %s; taken up again as '%s'", run.name, DIED, following.name)


def _settle_never_begun(client: SyncPrefectClient) -> None:
    """Runs of ours that were made ready to start and whose process never began, e.g. since the machine went down."""
    names = FlowFilter(name=FlowFilterName(any_=[*FLOWS, *STAGES]))
    pending = FlowRunFilter.model_validate({"state": {"type": {"any_": ["PENDING"]}}})
    for run in client.read_flow_runs(flow_filter=names, flow_run_filter=pending):
        if run.state is not None and now("UTC") - run.state.timestamp > timedelta(seconds=NEVER_BEGAN_S):
            _take_up(client, run, times_taken_up(set(run.tags)), [])
