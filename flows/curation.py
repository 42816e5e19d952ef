"""Curation as a flow of its own: pages in, the curated set out.

Run:   prefect deployment run curation             (after `make up`; with -p as in flows/full_pipeline.py)
       python -m flows.curation
"""

import sys

from prefect import flow

from flows.pipeline import HOOKS, command_line, run_flow
from flows.stages import CurationStage


@flow(name="curation", **HOOKS)
def curation(
    start_at: CurationStage = "crawl", stop_at: CurationStage = "retrieve", force: tuple[CurationStage, ...] = ()
) -> None:
    """Bring the stages from `start_at` to `stop_at` up to date; those in `force` run even if nothing changed."""
    run_flow("curation", start_at, stop_at, force)


if __name__ == "__main__":
    sys.exit(command_line(curation))
