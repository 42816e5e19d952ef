"""Run a step that was not finite again, in one process, and say where it began.

Run:   python -m dinov2.train.replay work/pretrain/<fingerprint>/not_finite/step-000000123

Prints statistics of the images, every loss and gradient norm beside what was seen then, the first module in forward
order whose output is not finite, and whether the step failed again. Exit codes: 0, or 2 for a folder that is no dump.
"""

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dinov2.data.collate import finish
from dinov2.params import InputError, validate
from dinov2.train.distill import DistilledStudent, Distiller
from dinov2.train.dump import Dump, everything, read_dump
from dinov2.train.learning import Distillation, Learning, Pretraining
from dinov2.train.objective import Batch, build_network
from dinov2.train.optim import clip
from dinov2.train.parallelize import autocast
from dinov2.train.params import Architecture, RecipeParams
from dinov2.train.student_teacher import StudentTeacher

CLOSE = 1e-2  # relative difference to what was seen, beyond which the line says so; devices round differently


def main(arguments: list[str]) -> int:
    """The command line; returns its exit code."""
    parser = argparse.ArgumentParser("python -m dinov2.train.replay", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("folder", type=Path, help="work/.../not_finite/step-N")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args(arguments)
    try:
        replay(read_dump(options.folder), torch.device(options.device), print)
    except InputError as error:
        sys.stderr.write(f"replay: {error}\n")
        return 2
    return 0


def replay(dump: Dump, device: torch.device, show: Callable[[str], None]) -> bool:
    """Run the dumped step's forward and backward pass; `show` gets the findings line by line.

    Returns whether a learner that failed then fails again. Raises InputError if the weights don't fit the networks.
    """
    about = dump.about
    recipe = validate(RecipeParams, about["recipe"], where="about.json: recipe")
    learning = rebuild(about, recipe)
    whole = everything(learning).to(device)
    try:
        whole.load_state_dict(dump.weights, strict=True)
    except RuntimeError as error:
        raise InputError(f"weights.pt does not fit about.json ({error}); take the dump as it was written") from error
    whole.train()
    names = ", ".join(name or "the student" for name in about["learners"])
    show(f"step {about['step']} of {about['world_size']} processes; not finite then: {names}")
    for name, value in whole.state_dict().items():
        if not bool(torch.isfinite(value).all()):
            show(f"weights: {name} was not finite before the step: {_count(value)}")

    batch = Batch(*finish(dump.raw, device), max_masked=0)
    for line in _of_images("global", batch.global_crops), _of_images("local", batch.local_crops):
        show(line)
    failed_again = False
    with modules_not_finite(whole) as found:
        for name, losses, norms in _step(learning, recipe, batch, dump, device):
            numbers = {**losses, **{f"grad_norm_{part}": norm for part, norm in norms.items()}}
            title = f"{name}/" if name else ""
            for key, value in numbers.items():
                show(_beside(f"{title}{key}", value, about["numbers"]))
            bad = [key for key, value in numbers.items() if not isfinite(value)]
            failed_again |= bool(bad) and name in about["learners"]
            if bad and not found:
                show(f"{title or 'the student: '}all outputs are finite; gradients are not, from the loss down to "
                     f"{_latest_bad_gradient(learning.learners()[name])}")  # fmt: skip
    if found:
        show(f"first output that is not finite: {found[0]}")
    show("reproduced: it fails again" if failed_again else "not reproduced: all is finite here, look at the hardware "
         "or the number of processes")  # fmt: skip
    return failed_again


def rebuild(about: dict[str, Any], recipe: RecipeParams) -> Learning:
    """The networks of a dump, unsharded and with no weights yet."""
    given = about["networks"]

    def architecture(values: object) -> Architecture:
        return validate(Architecture, values, where="about.json: networks")

    if "student" in given:
        parts = architecture(given["student"])
        return Pretraining(StudentTeacher(
            parts.model, parts.dino_head, parts.ibot_head, recipe.loss,
            group_size=recipe.group_size, attention=recipe.efficiency.attention,
        ))  # fmt: skip
    parts = architecture(given["teacher"])
    teacher = build_network(parts.model, parts.dino_head, parts.ibot_head, attention=recipe.efficiency.attention)
    students = {name: architecture(values) for name, values in given["students"].items()}
    return Distillation(
        Distiller(teacher, recipe.loss, group_size=recipe.group_size),
        {name: DistilledStudent(one.model, one.dino_head, one.ibot_head, attention=recipe.efficiency.attention)
         for name, one in students.items()},
    )  # fmt: skip


def _step(
    learning: Learning, recipe: RecipeParams, batch: Batch, dump: Dump, device: torch.device
) -> Iterator[tuple[str, dict[str, float], dict[str, float]]]:
    """(learner, losses, gradient norms) of each learner, as the loop computes them, without any update."""
    temperature = dump.about["values"]["teacher_temperature"]
    scale = dump.about["loss_scale"] or 1.0
    seeds = dump.raw.group_seeds
    with autocast(recipe.efficiency.precision, device):
        (targets,) = learning.targets([batch], temperature)
    for name, network in learning.learners().items():
        with autocast(recipe.efficiency.precision, device):
            total, terms = learning.losses(name, batch, targets, seeds)
        (total * scale).backward()
        norms = clip(network, recipe.optim.clip_norm, scale=torch.tensor(scale, device=device))
        numbers = {key: float(value) for key, value in {**terms, "total": total.detach()}.items()}
        yield name, numbers, {part: float(norm) for part, norm in norms.items()}


@contextmanager
def modules_not_finite(whole: nn.Module) -> Iterator[list[str]]:
    """While open, fills a list with the modules whose outputs were not finite, in the order they were computed."""
    found: list[str] = []

    def look(name: str, module: nn.Module, inputs: object, output: object) -> None:
        bad = [tensor for tensor in _tensors(output) if not bool(torch.isfinite(tensor).all())]
        if bad:
            found.append(f"{name} ({type(module).__name__}), {_count(bad[0])}")

    handles = [module.register_forward_hook(partial(look, name)) for name, module in whole.named_modules()]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _tensors(value: object) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)


def _latest_bad_gradient(network: nn.ModuleDict) -> str:
    """The parameter nearest to the loss whose gradient is not finite; registration follows the forward pass."""
    bad = [
        name
        for name, parameter in network.named_parameters()
        if parameter.grad is not None and not bool(torch.isfinite(parameter.grad).all())
    ]
    return bad[-1] if bad else "no parameter"


def _count(tensor: Tensor) -> str:
    num_nan, num_inf = int(tensor.isnan().sum()), int(tensor.isinf().sum())
    return f"{num_nan} NaN and {num_inf} infinite of {tensor.numel()} in {list(tensor.shape)}"


def _of_images(kind: str, crops: Tensor) -> str:
    """Range of all crops of a kind, and which images are not finite or all of one value."""
    if not crops.numel():
        return f"{kind} crops: none"
    by_image = crops.transpose(0, 1).flatten(1)
    finite = torch.isfinite(by_image).all(1)
    flat = by_image.amax(1) == by_image.amin(1)
    least, most = torch.aminmax(torch.nan_to_num(by_image))
    num_nan = int(crops.isnan().sum())
    line = f"{kind} crops {list(crops.shape)}: from {float(least):.3f} to {float(most):.3f}, {num_nan} NaN"
    if not bool(finite.all()):
        line += f"; not finite: images {(~finite).nonzero().flatten().tolist()}"
    return line + (f"; of one value: images {flat.nonzero().flatten().tolist()}" if bool(flat.any()) else "")


def _beside(name: str, value: float, seen: dict[str, str]) -> str:
    line = f"{name:32} {value:.6g}"
    if name not in seen:
        return line
    then = float(seen[name])
    same = (value == then or abs(value - then) <= CLOSE * abs(then)) if isfinite(value) and isfinite(then) else (
        isfinite(value) == isfinite(then)
    )  # fmt: skip
    return f"{line}   then {then:.6g}" + ("" if same else "   differs")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
