"""Distil the large backbone into small ones: in one job, so that the students share each pass of the frozen teacher.

In:    data/highres/training.safetensors   the teacher with both its heads
       data/retrieve/manifest.parquet      the curated images
Out:   out/<student>/backbone.safetensors, .json, curves.csv   of each student of `students`, its moving average
       out/figures/                        losses of each
Run:   python -m tasks.distill --highres data/highres --retrieve data/retrieve --out data/distill
Cost:  the demo's three take about a minute on two cores. A student that is finished is not trained again, even when
       another one is added; goes on from its last checkpoint.
"""

import sys
from pathlib import Path
from typing import Annotated

from pydantic import Field

from dinov2.models.params import HeadParams, ViTParams
from dinov2.params import Params
from dinov2.records import CURATED, Summary, read_table
from dinov2.store import Store
from dinov2.train.params import Architecture, RecipeParams
from tasks.stage import main

VERSION = 2
COLLECTIVE = True  # all ranks train together


class StudentParams(Params):
    """One student: what is small about it. Prototypes and tying of heads must be its teacher's."""

    model: ViTParams
    dino_head: HeadParams
    ibot_head: HeadParams | None


class DistillParams(RecipeParams):
    """Section `distill` of params.yaml."""

    students: Annotated[dict[str, StudentParams], Field(min_length=1)]
    """Students by name; the name is their folder and their model's name in evaluate."""


def run(params: DistillParams, *, highres: Path, retrieve: Path, out: Path, work: Path, store: Store) -> Summary:
    """See the top of this file."""
    from dinov2.data.sources import ShardSource  # imported in the job, not in the submitter
    from dinov2.shards import ShardReader
    from dinov2.train.distillation import StudentRun, distill, identity
    from dinov2.train.products import TRAINING

    manifest = retrieve / "manifest.parquet"
    rows = read_table(manifest, CURATED)
    store.check((row["shard"] for row in rows), needed_by=manifest)
    recipe = RecipeParams(**{name: getattr(params, name) for name in RecipeParams.model_fields})
    shared = identity(recipe, [highres / TRAINING, manifest], VERSION)
    students = {
        name: StudentRun(
            Architecture(model=student.model, dino_head=student.dino_head, ibot_head=student.ibot_head),
            finished=work.parent / "students" / f"{name}-{identity(student, [], shared)}",
        )
        for name, student in sorted(params.students.items())
    }
    source = ShardSource(rows, ShardReader(store))
    return distill(recipe, students, highres / TRAINING, source, out=out, work=work)


if __name__ == "__main__":
    sys.exit(main(run))
