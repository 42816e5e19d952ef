"""Params of the flows: how Prefect starts stages, and when. No stage depends on them."""

from pathlib import Path
from typing import Annotated

from pydantic import Field

from dinov2.params import InputError, Params, load_section
from flows.stages import FLOWS, STAGES
from tasks.resources import LaunchParams

PARAMS_FILE = Path("params.yaml")


class FlowsParams(Params):
    """Section `flows` of params.yaml."""

    stages_at_once: Annotated[int, Field(ge=1)]
    """So many stages run side by side where they don't need each other: 1 on a machine that has no scheduler."""
    retries: Annotated[int, Field(ge=0)]
    """So often a stage that crashed is tried again; a person's mistake or a missed gate never is."""
    retry_delay_s: Annotated[float, Field(ge=0)]
    """Seconds before that."""
    take_up_again: Annotated[int, Field(ge=0)]
    """So often a run whose process died is started again by itself; it goes on where it was."""
    schedules: dict[str, str]
    """Deployment -> cron expression, e.g. `full-pipeline: "0 3 * * *"`."""
    timezone: str
    """Of the schedules, e.g. `Europe/Berlin`."""


def load_flows_params() -> FlowsParams:
    """Section `flows`; raises InputError for a schedule of what is no deployment, too."""
    params = load_section(PARAMS_FILE, "flows", FlowsParams)
    for name in params.schedules:
        if name not in (*FLOWS, *STAGES):
            known = ", ".join((*FLOWS, *STAGES))
            raise InputError(f"params.yaml: flows.schedules names '{name}', which is no deployment; there are {known}")
    return params


def cluster() -> str:
    """Where stages run: `launch.cluster`."""
    return load_section(PARAMS_FILE, "launch", LaunchParams).cluster
