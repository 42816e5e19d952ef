"""What a recipe for few images and few steps makes of Caltech-101: a curve of k-NN over training, as a Markdown table.

Run:   python benchmarks/caltech.py --images DIR [--recipe FILE] [--seeds 0 1 2] [--off koleo ibot sinkhorn untied]
           [--steps N | --minutes M] [--looks 5] [--set KEY=VALUE ...] [--out FILE]   (from the root; 15 minutes a run)

DIR holds a folder of images a class; all folders count as classes, the background too. Every fifth image in the order
of paths is held out. The teacher is judged by weighted k-NN (k 20, temperature 0.07) of the held-out images among the
training ones, on centre crops of the global crop's side. Judging stops the clock: seconds are training's alone.
`--off` adds runs without each part named; with --minutes each takes as many steps as it can in that time.
"""

import argparse
import copy
import logging
import shlex
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from ruamel.yaml import YAML
from torch import Tensor, nn

from dinov2.data.decode import decode_rgb
from dinov2.data.sources import FolderSource
from dinov2.data.view import center_crop, normalise
from dinov2.eval.features import number_labels
from dinov2.eval.knn import knn_scores
from dinov2.eval.params import KnnParams
from dinov2.metrics import accuracy
from dinov2.params import read_yaml, validate
from dinov2.train.learning import Pretraining
from dinov2.train.loop import train
from dinov2.train.objective import backbone_of
from dinov2.train.params import TrainParams
from dinov2.train.student_teacher import StudentTeacher

RECIPE = Path("presets/few-steps.yaml")
RESULTS = Path("benchmarks/results/caltech.md")
HELD_OUT_EVERY = 5
KNN = KnnParams(num_neighbors=[20], reference=20, temperature=0.07)
CALIBRATION_STEPS = (6, 18)  # a run of the first number of steps takes the start-up, the other's excess tells the rate
SCHEDULED_STEPS = ("warmup_steps", "teacher_temperature_warmup_steps", "freeze_last_layer_steps")
OFF = {  # the paper's parts, and what a recipe says without them
    "koleo": "loss.koleo_weight=0.0",
    "ibot": "loss.ibot_weight=0.0",  # the student then sees its global crops without masks
    "sinkhorn": "loss.centering=softmax",
    "untied": "ibot_head=null",
}


class Part(FolderSource):
    """Some images of a folder, by their numbers in it."""

    def __init__(self, whole: FolderSource, numbers: Sequence[int]) -> None:
        self.path = whole.path
        self.files = [whole.files[number] for number in numbers]


def split(whole: FolderSource) -> tuple[Part, Part]:
    """(training images, held-out images): every fifth in the order of paths is held out."""
    numbers = range(len(whole))
    return (
        Part(whole, [number for number in numbers if number % HELD_OUT_EVERY != HELD_OUT_EVERY - 1]),
        Part(whole, numbers[HELD_OUT_EVERY - 1 :: HELD_OUT_EVERY]),
    )


class Exam:
    """The centre crops of both parts, in memory as bytes, and the k-NN that judges a backbone on them."""

    def __init__(self, train: Part, held_out: Part, size_px: int) -> None:
        labels = [[str(part.label(i)) for i in range(len(part))] for part in (train, held_out)]
        names = sorted(set(labels[0]))
        self.num_classes = len(names)
        self.labels = [number_labels(each, names) for each in labels]
        self.images = [
            torch.stack([center_crop(decode_rgb(part.read(i)), size_px) for i in range(len(part))])
            for part in (train, held_out)
        ]

    @torch.inference_mode()
    def knn(self, network: nn.ModuleDict) -> tuple[float, float]:
        """Top-1 accuracy of the held-out images by CLS tokens, and by mean patch tokens."""
        backbone = backbone_of(network).eval()
        cls, patches = zip(*(_features(backbone, images) for images in self.images), strict=True)
        return self._top1(*cls), self._top1(*patches)

    def _top1(self, bank: Tensor, queries: Tensor) -> float:
        scores = knn_scores(bank, self.labels[0], queries, num_classes=self.num_classes, params=KNN)
        return accuracy(scores[KNN.reference], self.labels[1], 1)


def _features(backbone: Any, images: Tensor) -> tuple[Float[Tensor, "n d"], Float[Tensor, "n d"]]:
    batches = [backbone.features(normalise(batch)) for batch in images.split(128)]
    return torch.cat([each.cls for each in batches]), torch.cat([each.patches.mean(dim=1) for each in batches])


class Look(NamedTuple):
    """One judgement of the teacher."""

    step: int
    seconds: float
    """Of training, without the judging."""
    cpu_s: float
    """Processor time of training, all threads: what a shared machine leaves comparable."""
    knn: float
    patch_knn: float


@dataclass
class Clock:
    """Wall and processor seconds, while it runs."""

    wall: float = 0.0
    cpu: float = 0.0

    def go(self) -> None:
        """Start, or go on."""
        self.wall, self.cpu = self.wall - time.perf_counter(), self.cpu - time.process_time()

    def stop(self) -> None:
        """Stop, or pause."""
        self.wall, self.cpu = self.wall + time.perf_counter(), self.cpu + time.process_time()


class Judged(Pretraining):
    """A pretraining whose teacher is judged before it, every `every` steps and after it."""

    def __init__(self, pair: StudentTeacher, exam: Exam, every: int) -> None:
        super().__init__(pair)
        self.exam = exam
        self.every = every
        self.updates = 0
        self.clock = Clock()
        self.looks: list[Look] = []

    def update_average(self, name: str, momentum: float) -> None:
        """Move the teacher, and judge it if it is time."""
        super().update_average(name, momentum)
        self.updates += 1
        if self.updates % self.every == 0:
            self.clock.stop()
            self.look()
            self.clock.go()

    def look(self) -> None:
        """Judge the teacher as it is, once a step."""
        if self.looks and self.looks[-1].step == self.updates:
            return
        knn, patch_knn = self.exam.knn(self.pair.teacher)
        self.looks.append(Look(self.updates, self.clock.wall, self.clock.cpu, knn, patch_knn))
        logging.info("%s", self.looks[-1])


def build(recipe: TrainParams) -> StudentTeacher:
    """The networks with the fresh weights of the recipe's seed."""
    torch.manual_seed(recipe.seed)
    return StudentTeacher(
        recipe.model, recipe.dino_head, recipe.ibot_head, recipe.loss,
        group_size=recipe.group_size, attention=recipe.efficiency.attention, recompute=recipe.efficiency.recompute,
    )  # fmt: skip


def fit(learning: Pretraining, recipe: TrainParams, source: Part) -> None:
    """Train on the CPU in a folder that is thrown away."""
    with tempfile.TemporaryDirectory() as work:
        train(
            learning, recipe, source,
            patch_size=recipe.model.patch_size, work=Path(work), fingerprint="caltech", device=torch.device("cpu"),
        )  # fmt: skip


def run(recipe: TrainParams, source: Part, exam: Exam, num_looks: int) -> list[Look]:
    """Train by a recipe from fresh weights; the first look is at the random network."""
    learning = Judged(build(recipe), exam, every=-(-recipe.num_steps // num_looks))
    learning.look()
    learning.clock.go()
    fit(learning, recipe, source)
    learning.clock.stop()
    learning.look()
    return learning.looks


def changed(values: dict[str, Any], settings: Sequence[str]) -> dict[str, Any]:
    """A recipe's values with settings like `optim.base_lr=2.0e-3`, in YAML's notation; wrong names fail validation."""
    values = copy.deepcopy(values)
    for setting in settings:
        key, _, text = setting.partition("=")
        *sections, name = key.split(".")
        inner = values
        for section in sections:
            inner = inner.setdefault(section, {})
        inner[name] = YAML(typ="safe", pure=True).load(text)
    return values


def lasting(values: dict[str, Any], num_steps: int) -> dict[str, Any]:
    """A recipe's values for another number of steps; its warm-ups keep their share of them."""
    schedule = {name: round(values["schedule"][name] * num_steps / values["num_steps"]) for name in SCHEDULED_STEPS}
    return {**values, "num_steps": num_steps, "schedule": {**values["schedule"], **schedule}}


def validated(values: dict[str, Any], seed: int) -> TrainParams:
    """The recipe of a seed, checked."""
    return validate(TrainParams, {**values, "seed": seed}, where="pretrain")


def steps_within(minutes: float, values: dict[str, Any], source: Part) -> int:
    """How many steps of this recipe fit, from the rate of a few."""
    seconds = []
    for num_steps in CALIBRATION_STEPS:
        recipe = validated(lasting(values, num_steps), 0)
        started = time.perf_counter()
        fit(Pretraining(build(recipe)), recipe, source)
        seconds.append(time.perf_counter() - started)
    short, long = CALIBRATION_STEPS
    return max(1, int(60 * minutes / ((seconds[1] - seconds[0]) / (long - short))))


def rows(name: str, seed: int, recipe: TrainParams, looks: list[Look]) -> list[str]:
    """Table rows of one run."""
    lines = []
    for step, seconds, cpu_s, knn, patch_knn in looks:
        images = step * recipe.batch_size
        rate = f"{images / seconds:.1f}" if step else ""
        cells = f"{step} | {images} | {seconds:.0f} | {cpu_s:.0f} | {rate} | {100 * knn:.1f} | {100 * patch_knn:.1f}"
        lines.append(f"| {name} | {seed} | {cells} |")
    return lines


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True, help="a folder of images a class")
    parser.add_argument("--recipe", type=Path, default=RECIPE, help="a params file with a section pretrain")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--off", nargs="+", default=[], choices=OFF, help="add a run without each of these")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="changes of the recipe")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--steps", type=int, help="instead of the recipe's; warm-ups scale with it")
    length.add_argument("--minutes", type=float, help="of training a run, instead of a number of steps")
    parser.add_argument("--looks", type=int, default=5, help="judgements a run after the one of the random network")
    parser.add_argument("--out", type=Path, default=RESULTS)
    return parser.parse_args()


def main() -> None:
    """Measure and print."""
    asked = arguments()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    whole: dict[str, Any] = read_yaml(asked.recipe)
    values = {name: value for name, value in whole["pretrain"].items() if name != "sources"}  # Caltech is the source
    values = changed(values, asked.set)
    source, held_out = split(FolderSource(asked.images))
    exam = Exam(source, held_out, values["crops"]["global_size_px"])
    lines = [
        "| run | seed | steps | images | s | CPU s | images/s | k-NN of CLS % | k-NN of mean patch % |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for part in [None, *asked.off]:
        name = f"no {part}" if part else "recipe"
        chosen = changed(values, [OFF[part]] if part else [])
        num_steps = steps_within(asked.minutes, chosen, source) if asked.minutes else asked.steps
        chosen = lasting(chosen, num_steps) if num_steps else chosen
        for seed in asked.seeds:
            recipe = validated(chosen, seed)
            lines += rows(name, seed, recipe, run(recipe, source, exam, asked.looks))
    given = ["DIR" if word == str(asked.images) else word for word in sys.argv[1:]]
    head = [
        f"Printed by `python benchmarks/caltech.py {shlex.join(given)}` on {torch.get_num_threads()} threads: "
        f"{len(source)} training images, {len(held_out)} held out, {exam.num_classes} classes.",
        "",
    ]
    text = "\n".join([*head, *lines]) + "\n"
    print(text)
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    asked.out.write_text(text)


if __name__ == "__main__":
    main()
