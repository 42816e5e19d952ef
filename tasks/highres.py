"""Go on training at a higher resolution for a short time, so that small things in images are learnt too.

In:    data/pretrain/training.safetensors   student and teacher with their heads
       data/retrieve/manifest.parquet       the curated images
Out:   as pretrain, of the networks at the larger size
Run:   python -m tasks.highres --pretrain data/pretrain --retrieve data/retrieve --out data/highres
Cost:  the demo's takes under a minute on two cores. Goes on from its last checkpoint.
"""

import sys
from pathlib import Path
from typing import Any

from dinov2.records import Summary
from dinov2.store import Store
from dinov2.train.costs import Networks
from dinov2.train.params import RecipeParams
from tasks.networks import networks_of_highres
from tasks.stage import main

VERSION = 2
COLLECTIVE = True  # all ranks train together


class HighresParams(RecipeParams):
    """Section `highres` of params.yaml; the networks are those of pretrain."""


def run(params: HighresParams, *, pretrain: Path, retrieve: Path, out: Path, work: Path, store: Store) -> Summary:
    """See the top of this file."""
    from dinov2.data.mixture import open_curated  # imported in the job, not in the submitter
    from dinov2.train.pretraining import at_resolution
    from dinov2.train.pretraining import pretrain as train
    from dinov2.train.products import TRAINING, read_training

    initial, architecture = at_resolution(*read_training(pretrain / TRAINING), params.crops.global_size_px)
    source = open_curated(retrieve, store)
    return train(params, architecture, source, stage="highres", out=out, work=work, initial=initial)


def models(params: HighresParams) -> dict[str, Any]:
    """What is trained here, with its params: a run each."""
    return {"highres": params.model_dump(mode="json")}


def networks_of(params: HighresParams, *, params_file: Path) -> Networks:
    """What is trained."""
    return Networks(networks_of_highres(params_file))


if __name__ == "__main__":
    sys.exit(main(run))
