"""Training as a flow of its own: the curated set in, pretrained and distilled backbones out.

Run:   prefect deployment run training             (after `make up`; with -p as in flows/full_pipeline.py)
       python -m flows.training
"""

import sys

from prefect import flow

from flows.pipeline import HOOKS, command_line, run_flow
from flows.stages import TrainingStage


@flow(name="training", **HOOKS)
def training(
    start_at: TrainingStage = "pretrain", stop_at: TrainingStage = "distill", force: tuple[TrainingStage, ...] = ()
) -> None:
    """Bring the stages from `start_at` to `stop_at` up to date; those in `force` run even if nothing changed."""
    run_flow("training", start_at, stop_at, force)


if __name__ == "__main__":
    sys.exit(command_line(training))
