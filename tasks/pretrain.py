"""Train DINOv2 on the curated images: DINO, iBOT and KoLeo, a student and the teacher that is its average.

In:    data/retrieve/manifest.parquet   the curated images, in shards of the store; further sources by `sources`
Out:   out/backbone.safetensors, .json  the teacher's backbone
       out/training.safetensors         student and teacher with their heads, for highres
       out/curves.csv, figures/         losses, schedules, monitors
Run:   python -m tasks.pretrain --retrieve data/retrieve --out data/pretrain
       python -m tasks.pretrain --plan [--params presets/paper-vitg.yaml] [--processes 256]   what it will cost
Cost:  the pipeline's largest; the demo's takes two or three minutes on two cores. Goes on from its last checkpoint.
"""

import sys
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from dinov2.data.params import SourceParams
from dinov2.records import Summary
from dinov2.store import Store
from dinov2.train.costs import Networks
from dinov2.train.params import Architecture, TrainParams
from tasks.stage import main

VERSION = 2
COLLECTIVE = True  # all ranks train together


class PretrainParams(TrainParams):
    """Section `pretrain` of params.yaml."""

    sources: Annotated[list[SourceParams], Field(min_length=1)]
    """What is trained on: one source, or several that are mixed by weight."""


def run(params: PretrainParams, *, retrieve: Path, out: Path, work: Path, store: Store) -> Summary:
    """See the top of this file."""
    from dinov2.data.mixture import open_sources  # imported in the job, not in the submitter
    from dinov2.train.pretraining import initial_backbones, pretrain

    architecture = Architecture(model=params.model, dino_head=params.dino_head, ibot_head=params.ibot_head)
    source = open_sources(params.sources, retrieve=retrieve, store=store)
    initial = initial_backbones(params)
    return pretrain(params, architecture, source, stage="pretrain", out=out, work=work, initial=initial)


def models(params: PretrainParams) -> dict[str, Any]:
    """What is trained here, with its params: a run each."""
    return {"pretrain": params.model_dump(mode="json")}


def networks_of(params: PretrainParams, *, params_file: Path) -> Networks:
    """What is trained."""
    return Networks(Architecture(model=params.model, dino_head=params.dino_head, ibot_head=params.ibot_head))


if __name__ == "__main__":
    sys.exit(main(run))
