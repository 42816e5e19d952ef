"""What all flows do: bring their stages up to date, side by side where they don't need each other.

A stage that did not change is not run; one that was interrupted goes on where it was. After a failure no further stage
begins; those that run come to their end. When the flow is ended, so are they, with their jobs.
"""

import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

from prefect import Flow, get_run_logger
from prefect.client.schemas.objects import FlowRun, State
from prefect.futures import PrefectFuture
from prefect.runtime import deployment, flow_run

from dinov2.params import InputError
from flows.artifacts import Jobs, Progress, publish_stage, stage_metrics
from flows.params import cluster, load_flows_params
from flows.parent_run import begin_parent, end_parent_as
from flows.repro import CANCEL_PATIENCE_S, STOPPING, StageCrashError, StageMistakeError, repro
from flows.runs import FlowRecord, forget, new_record, note, only_flow
from flows.settle import times_taken_up
from flows.stages import FLOWS, Needs, choose, read_needs

JOBS_EVERY_S = 15.0
LOG = Path("work/flow.log")  # what flows that were started by a deployment print


def run_flow(name: str, start_at: str, stop_at: str, force: Sequence[str]) -> None:
    """The body of the flow `name`. Raises what the first stage that failed raised; InputError for a mistake."""
    record = _record(name)
    with only_flow(record), _noted(record):
        chosen = choose(FLOWS[name], start_at, stop_at, force)
        at_once = load_flows_params().stages_at_once
        needs = read_needs(chosen, split=at_once > 1)  # where one runs at a time, members of a stage share one dvc
        begin_parent(name)
        try:
            run_stages(record, needs, at_once=at_once, force=force)
        except Exception:
            end_parent_as("FAILED", {}, [])
            raise
        except BaseException:  # cancelled, or a signal
            end_parent_as("KILLED", {}, [])
            raise
        reported = "report" in chosen
        if reported:
            get_run_logger().info("\n%s", Path("data/report/summary.txt").read_text())
        metrics, files = (stage_metrics("report"), [Path("data/report/report.html")]) if reported else ({}, [])
        end_parent_as("FINISHED", metrics, files)


def run_one(stage: str, force: bool) -> None:
    """The body of a flow of one stage, whatever the state of those before it."""
    record = _record(stage)
    with only_flow(record), _noted(record):
        at_once = load_flows_params().stages_at_once
        run_stages(record, read_needs([stage], split=at_once > 1), at_once=at_once, force=[stage] if force else [])


def run_stages(record: FlowRecord, needs: Needs, *, at_once: int, force: Sequence[str]) -> None:
    """Run what `needs` names, at most `at_once` side by side; the earlier in order goes first."""
    log, task, on = get_run_logger(), _task(), cluster()
    waiting, done = list(needs), list[str]()
    started: dict[str, PrefectFuture[Any]] = {}
    running: dict[PrefectFuture[Any], str] = {}
    ended: SimpleQueue[PrefectFuture[Any]] = SimpleQueue()
    failures: list[Exception] = []
    progress, jobs = Progress(len(needs)), Jobs()
    try:
        while running or (waiting and not failures):
            ready = [name for name in waiting if needs[name] <= set(done)] if not failures else []
            for name in ready[: at_once - len(running)]:
                before = [started[other] for other in needs[name]]  # for the picture of the run: they have ended
                future = task.submit(name, cluster=on, force=name.split("@")[0] in force, wait_for=before)
                started[name], running[future] = future, name
                waiting.remove(name)
                future.add_done_callback(ended.put)
            progress.show(len(done), list(running.values()))
            future = _next(ended, lambda: jobs.show(list(running.values())))
            name = running.pop(future)
            result = future.state.result(raise_on_failure=False)
            jobs.show([name])
            if isinstance(result, Exception):
                failures.append(result)
                others = ", ".join(running.values())
                log.error("%s%s", result, f"; no other stage begins, {others} comes to its end" if others else "")
                continue
            done.append(name)
            note(record, done=done)
            publish_stage(name.split("@")[0])
    except BaseException:
        _stop(list(running))
        raise
    progress.show(len(done), [])
    if failures:
        raise failures[0]


def _task() -> Any:
    params = load_flows_params()
    return repro.with_options(retries=params.retries, retry_delay_seconds=params.retry_delay_s)


def _next(ended: "SimpleQueue[PrefectFuture[Any]]", meanwhile: Callable[[], None]) -> PrefectFuture[Any]:
    while True:
        try:
            future = ended.get(timeout=JOBS_EVERY_S)
        except Empty:
            meanwhile()
        else:
            future.wait()
            return future


def _stop(running: list[PrefectFuture[Any]]) -> None:
    """Let the stages cancel their jobs; no signal reaches their threads."""
    STOPPING.set()
    deadline = time.monotonic() + CANCEL_PATIENCE_S + 5
    for future in running:
        future.wait(timeout=max(0.1, deadline - time.monotonic()))


def _record(name: str) -> FlowRecord:
    if deployment.get_id() is not None:
        _outlive_what_serves()
    again = times_taken_up(set(flow_run.get_tags() or []))
    return new_record(str(flow_run.get_id()), flow_run.get_name() or name, name, again)


def _outlive_what_serves() -> None:
    """Print to a file: what serves the deployments reads a pipe, and a line after its death would be our end."""
    LOG.parent.mkdir(exist_ok=True)
    with LOG.open("a") as log:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
            os.dup2(log.fileno(), stream.fileno())


@contextmanager
def _noted(record: FlowRecord) -> Iterator[None]:
    """Note how the flow came to its end by itself: should Prefect not hear of it, `settle` tells it later."""
    try:
        yield
    except Exception as error:
        note(record, ended="FAILED", sentence=str(error))
        raise
    note(record, ended="COMPLETED", sentence="")


def _on_end(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:
    forget(str(flow_run.id))


def _on_crash(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:
    end_parent_as("FAILED", {}, [], of_flow_run=str(flow_run.id))


HOOKS: dict[str, Any] = {"on_completion": [_on_end], "on_failure": [_on_end], "on_crashed": [_on_crash]}


def command_line(flow: Flow[..., Any]) -> int:
    """Run a flow here and now; returns the exit code."""
    try:
        flow()
    except (StageMistakeError, InputError) as error:
        sys.stderr.write(f"{flow.name}: {error}\n")
        return 2
    except StageCrashError as error:
        sys.stderr.write(f"{flow.name}: {error}\n")
        return 1
    except RuntimeError as error:
        if "Failed to reach API" not in str(error):  # Prefect's words
            raise
        sys.stderr.write(f"{flow.name}: Prefect's server does not answer ({error}); start it, e.g. by `make up`\n")
        return 2
    return 0
