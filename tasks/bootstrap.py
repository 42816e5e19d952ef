"""Make the embedder of the curation: a ViT trained without labels on the curated seeds, by the code of pretrain.

In:    seeds/<label>/*.jpg               the curated images; their labels are only used to watch
Out:   out/backbone.safetensors, .json   the teacher's backbone, or the given one
       out/training.safetensors          student and teacher with their heads
       out/curves.csv, figures/          losses, schedules, monitors
Run:   python -m tasks.bootstrap --seeds inputs/demo/seeds --out data/bootstrap
Cost:  the demo's takes under a minute on two cores; nothing where `backbone` names one. Goes on from its checkpoint.
"""

import sys
from pathlib import Path
from typing import Any

from dinov2.records import Summary
from dinov2.train.costs import Networks
from dinov2.train.params import Architecture, TrainParams
from tasks.stage import main

VERSION = 3
COLLECTIVE = True  # all ranks train together


class BootstrapParams(TrainParams):
    """Section `bootstrap` of params.yaml."""

    backbone: str | None
    """Folder of a backbone (backbone.safetensors and .json) to use as it is; null: train one on the seeds."""


def run(params: BootstrapParams, *, seeds: Path, out: Path, work: Path) -> Summary:
    """See the top of this file."""
    from dinov2.data.sources import FolderSource  # imported in the job, not in the submitter
    from dinov2.hub import load_backbone, save_backbone
    from dinov2.train.curves import write_csv
    from dinov2.train.pretraining import initial_backbones, pretrain

    source = FolderSource(seeds, may_be_empty=params.backbone is not None)
    if params.backbone is not None:
        save_backbone(out, *load_backbone(Path(params.backbone)))
        write_csv(out / "curves.csv", [{"step": 0, "total": 0.0}])
        return Summary(num_in=len(source), num_kept=len(source), dropped={}, metrics={})
    architecture = Architecture(model=params.model, dino_head=params.dino_head, ibot_head=params.ibot_head)
    initial = initial_backbones(params)
    return pretrain(params, architecture, source, stage="bootstrap", out=out, work=work, initial=initial)


def models(params: BootstrapParams) -> dict[str, Any]:
    """What is trained here, with its params: a run each."""
    return {"bootstrap": params.model_dump(mode="json")}


def networks_of(params: BootstrapParams, *, params_file: Path) -> Networks | None:
    """What is trained; None: a given backbone is taken as it is."""
    if params.backbone is not None:
        return None
    return Networks(Architecture(model=params.model, dino_head=params.dino_head, ibot_head=params.ibot_head))


if __name__ == "__main__":
    sys.exit(main(run))
