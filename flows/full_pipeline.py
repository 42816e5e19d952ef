"""The whole pipeline as a Prefect flow: pages in, distilled and evaluated backbones and a report out.

Run:   prefect deployment run full-pipeline         (after `make up`)
       prefect deployment run full-pipeline -p start_at=embed -p stop_at=pretrain -p force='["dedup"]'
       python -m flows.full_pipeline                (with a server, e.g. that of `make up`)
       python -m flows.full_pipeline --plan [--params FILE] [--images N]    only what it would take
"""

import sys

from prefect import flow

from flows.pipeline import HOOKS, command_line, run_flow, run_one
from flows.plan import print_plan
from flows.stages import STAGES, Stage


@flow(name="full-pipeline", **HOOKS)
def full_pipeline(start_at: Stage = "crawl", stop_at: Stage = "report", force: tuple[Stage, ...] = ()) -> None:
    """Bring the stages from `start_at` to `stop_at` up to date; those in `force` run even if nothing changed."""
    run_flow("full-pipeline", start_at, stop_at, force)


@flow(name="stage", **HOOKS)
def one_stage(name: Stage, force: bool = False) -> None:
    """Bring one stage up to date, whatever the state of those before it; `force` runs it even if nothing changed."""
    run_one(name, force)


def main() -> int:
    """Run the pipeline here and now, or only say what it would take."""
    if "--plan" in sys.argv[1:]:
        return print_plan(STAGES, sys.argv[1:])
    return command_line(full_pipeline)


if __name__ == "__main__":
    sys.exit(main())
