"""Evaluation as a flow of its own: backbones in, metrics and the report out.

Run:   prefect deployment run evaluation             (after `make up`; with -p as in flows/full_pipeline.py)
       python -m flows.evaluation
"""

import sys

from prefect import flow

from flows.pipeline import HOOKS, command_line, run_flow
from flows.stages import EvaluationStage


@flow(name="evaluation", **HOOKS)
def evaluation(
    start_at: EvaluationStage = "evaluate", stop_at: EvaluationStage = "report", force: tuple[EvaluationStage, ...] = ()
) -> None:
    """Bring the stages from `start_at` to `stop_at` up to date; those in `force` run even if nothing changed."""
    run_flow("evaluation", start_at, stop_at, force)


if __name__ == "__main__":
    sys.exit(command_line(evaluation))
