"""Go on training at a higher resolution for a short time, so that small things in images are learnt too.

In:    data/pretrain/training.safetensors   student and teacher with their heads
       data/retrieve/manifest.parquet       the curated images
Out:   as pretrain, of the networks at the larger size
Run:   python -m tasks.highres --pretrain data/pretrain --retrieve data/retrieve --out data/highres
Cost:  the demo's takes under a minute on two cores. Goes on from its last checkpoint.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dinov2.params import read_yaml, validate
from dinov2.records import CURATED, Summary, read_table
from dinov2.store import Store
from dinov2.train.params import Architecture, RecipeParams
from dinov2.train.plan import Assumptions, Launched, plan_training
from tasks.stage import main

VERSION = 2
COLLECTIVE = True  # all ranks train together


class HighresParams(RecipeParams):
    """Section `highres` of params.yaml; the networks are those of pretrain."""


def run(params: HighresParams, *, pretrain: Path, retrieve: Path, out: Path, work: Path, store: Store) -> Summary:
    """See the top of this file."""
    from dinov2.data.sources import ShardSource  # imported in the job, not in the submitter
    from dinov2.shards import ShardReader
    from dinov2.train.pretraining import at_resolution
    from dinov2.train.pretraining import pretrain as train
    from dinov2.train.products import TRAINING, read_training

    manifest = retrieve / "manifest.parquet"
    rows = read_table(manifest, CURATED)
    store.check((row["shard"] for row in rows), needed_by=manifest)
    initial, architecture = at_resolution(*read_training(pretrain / TRAINING), params.crops.global_size_px)
    source = ShardSource(rows, ShardReader(store))
    return train(params, architecture, source, stage="highres", out=out, work=work, initial=initial)


def plan(params: HighresParams, *, params_file: Path, launched: Launched, assumed: Assumptions) -> Iterator[str]:
    """What --plan prints; the networks are those that pretrain's section describes."""
    section: Any = read_yaml(params_file)["pretrain"]
    chosen = {name: section[name] for name in Architecture.model_fields}
    architecture = validate(Architecture, chosen, where=f"{params_file.name}: pretrain")
    model = architecture.model.model_copy(update={"image_size_px": params.crops.global_size_px})
    return plan_training(
        "highres", params, architecture.model_copy(update={"model": model}), launched, assumed
    )


if __name__ == "__main__":
    sys.exit(main(run))
