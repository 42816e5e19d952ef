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
from typing import Annotated, Any

from pydantic import Field

from dinov2.models.params import HeadParams, ViTParams
from dinov2.params import Params
from dinov2.records import Summary
from dinov2.store import Store
from dinov2.train.costs import Networks
from dinov2.train.params import Architecture, RecipeParams
from tasks.networks import networks_of_highres
from tasks.stage import main

VERSION = 2
COLLECTIVE = True  # all ranks train together


class StudentParams(Params):
    """One student: what is small about it. Prototypes and tying of heads must be its teacher's."""

    model: ViTParams
    dino_head: HeadParams
    ibot_head: HeadParams | None

    @property
    def architecture(self) -> Architecture:
        """Its networks."""
        return Architecture(model=self.model, dino_head=self.dino_head, ibot_head=self.ibot_head)


class DistillParams(RecipeParams):
    """Section `distill` of params.yaml."""

    students: Annotated[dict[str, StudentParams], Field(min_length=1)]
    """Students by name; the name is their folder and their model's name in evaluate."""


def run(params: DistillParams, *, highres: Path, retrieve: Path, out: Path, work: Path, store: Store) -> Summary:
    """See the top of this file."""
    from dinov2.data.mixture import open_curated  # imported in the job, not in the submitter
    from dinov2.train.distillation import StudentRun, distill, identity
    from dinov2.train.products import TRAINING

    source = open_curated(retrieve, store)
    curated = [retrieve / "manifest.parquet", *retrieve.glob("mixture.json")]
    recipe = RecipeParams(**{name: getattr(params, name) for name in RecipeParams.model_fields})
    shared = identity(recipe, [highres / TRAINING, *curated], VERSION)
    students = {
        name: StudentRun(
            student.architecture,
            finished=work.parent / "students" / f"{name}-{identity(student, [], shared)}",
        )
        for name, student in sorted(params.students.items())
    }
    return distill(recipe, students, highres / TRAINING, source, out=out, work=work)


def models(params: DistillParams) -> dict[str, Any]:
    """The students, each with the params it has and those that all share: a run each."""
    shared = params.model_dump(mode="json", exclude={"students"})
    return {name: {**shared, **student.model_dump(mode="json")} for name, student in params.students.items()}


def networks_of(params: DistillParams, *, params_file: Path) -> Networks:
    """What is trained, and its teacher."""
    students = {name: student.architecture for name, student in sorted(params.students.items())}
    return Networks(networks_of_highres(params_file), students)


if __name__ == "__main__":
    sys.exit(main(run))
