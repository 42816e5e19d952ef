"""Our deployments, served: every flow and every stage, their schedules, and the care for runs whose process died."""

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from uuid import UUID

import httpx
from prefect import Flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import DeploymentUpdate
from prefect.deployments.runner import RunnerDeployment
from prefect.runner import Runner
from prefect.schedules import Cron

from dinov2.params import InputError
from flows.curation import curation
from flows.evaluation import evaluation
from flows.full_pipeline import full_pipeline, one_stage
from flows.params import FlowsParams, load_flows_params
from flows.places import declare_places
from flows.settle import settle
from flows.stages import FLOWS, STAGES, with_order
from flows.training import training

LOOK_EVERY_S = 5.0

log = logging.getLogger("flows")


def declared(params: FlowsParams) -> list[RunnerDeployment]:
    """The deployments, each called like its flow or stage. Raises InputError for a schedule that is none."""
    flows: list[Flow] = [full_pipeline, curation, training, evaluation]
    stages: list[Flow] = [one_stage.with_options(name=stage) for stage in STAGES]
    return [_declared(flow, params, {}) for flow in flows] + [
        _declared(flow, params, {"name": flow.name}) for flow in stages
    ]


def _declared(flow: Flow, params: FlowsParams, parameters: dict[str, str]) -> RunnerDeployment:
    cron = params.schedules.get(flow.name)
    try:
        schedule = Cron(cron, timezone=params.timezone) if cron is not None else None
        return RunnerDeployment.from_flow(flow, flow.name, parameters=parameters, schedule=schedule)
    except ValueError as error:
        what = f"params.yaml: flows.schedules.{flow.name} is '{cron}' in the time zone '{params.timezone}'"
        raise InputError(f"{what}, which Prefect can't read ({error}); write e.g. \"0 3 * * *\" and UTC") from error


def serve(look: Callable[[], None]) -> None:
    """Serve the deployments until stopped; `look` is called every few seconds, e.g. to see after the server."""
    deployments = declared(load_flows_params())
    threading.Thread(target=_care, args=[look], daemon=True).start()
    while (runner := _registered(deployments)) is None:
        time.sleep(LOOK_EVERY_S)
    asyncio.run(runner.start())


def _registered(deployments: list[RunnerDeployment]) -> Runner | None:
    """What serves the deployments, once the server knows them; None if it does not answer."""
    runner = Runner(name="flows", pause_on_shutdown=True)
    try:
        declare_places()
        for deployment in deployments:
            deployment_id = runner.add_deployment(deployment)
            assert isinstance(deployment_id, UUID)
            if deployment.name in FLOWS:
                _refuse_wrong_order(deployment_id, deployment.name)
    except httpx.TransportError as error:
        log.warning("the Prefect server does not answer (%s); trying again", error)
        return None
    return runner


def _refuse_wrong_order(deployment_id: UUID, flow: str) -> None:
    with get_client(sync_client=True) as client:
        schema = client.read_deployment(deployment_id).parameter_openapi_schema or {}
        extended = with_order(schema, FLOWS[flow])
        client.update_deployment(deployment_id, DeploymentUpdate(parameter_openapi_schema=extended))


def _care(look: Callable[[], None]) -> None:
    """Settle runs whose process died, again and again; a server that does not answer is asked again."""
    dead: set[str] = set()
    waiting = threading.Event()
    while True:
        try:
            look()
            with get_client(sync_client=True) as client:
                dead = settle(client, dead)
        except Exception as error:
            log.warning("can't look after flow runs (%s: %s); trying again", type(error).__name__, error)
        waiting.wait(LOOK_EVERY_S)
