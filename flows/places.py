"""Places for stages on a cluster: a Prefect concurrency limit, so that the flows of all workspaces share them.

Within one flow `flows.stages_at_once` is kept by the flow itself (flows/pipeline.py). A server that does not answer
therefore never stops a stage: it goes on without a place.
"""

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import httpx
from prefect import get_run_logger
from prefect.client.orchestration import get_client
from prefect.concurrency.sync import concurrency

from flows.params import cluster, load_flows_params

ASK_EVERY_S = 10.0
LEASE_S = 60.0  # a place whose holder died is free again after this long
NO_ANSWER = (httpx.HTTPError, OSError)


def limit_name(on: str) -> str:
    """The limit's name in Prefect's pages."""
    return f"cluster-{on}"


def declare_places() -> None:
    """Tell Prefect how many stages the cluster of params.yaml takes at once."""
    with get_client(sync_client=True) as client:
        client.upsert_global_concurrency_limit_by_name(limit_name(cluster()), load_flows_params().stages_at_once)


@contextmanager
def place(on: str, stopping: threading.Event) -> Iterator[None]:
    """Hold a place on cluster `on`, waiting for one as long as need be or until `stopping` is set."""
    log = get_run_logger()
    held = ExitStack()
    waits = False
    while not stopping.is_set():
        try:
            held.enter_context(
                concurrency(
                    limit_name(on),
                    timeout_seconds=ASK_EVERY_S,
                    lease_duration=LEASE_S,
                    raise_on_lease_renewal_failure=False,
                )
            )
            break
        except TimeoutError:
            if not waits:
                log.info("waiting for a place: `prefect gcl inspect %s` shows how many are taken", limit_name(on))
            waits = True
        except Exception as error:  # the limit is a courtesy among workspaces
            log.warning("Prefect's server gave no place on %s (%s); going on without", on, error)
            break
    try:
        yield
    finally:
        try:
            held.close()
        except Exception as error:  # it expires by itself
            log.warning("Prefect's server did not take back a place on %s (%s)", on, error)
