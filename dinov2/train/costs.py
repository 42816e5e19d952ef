"""What a training takes, in numbers: for its own plan, for that of the whole pipeline, and for checks beforehand.

How much of it is counted and how much estimated: plan.py. Torch is only imported where shards are rehearsed.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from dinov2.data.params import images_of_process
from dinov2.gpus import GPU
from dinov2.train.flops import OURS, StepFlops, distillation_flops_per_step, flops_per_step
from dinov2.train.memory import (
    Memory,
    backbone_parameters,
    checkpoint_bytes,
    memory_of_distillation,
    memory_of_process,
    num_parameters,
)
from dinov2.train.params import Architecture, RecipeParams

RECOMPUTE = ("none", "pointwise", "block")


class Networks(NamedTuple):
    """What a stage trains."""

    teacher: Architecture
    students: Mapping[str, Architecture] = MappingProxyType({})
    """Of a distillation, by name; none where the one student is like its teacher."""

    @property
    def learners(self) -> list[Architecture]:
        """What gets gradients."""
        return list(self.students.values()) or [self.teacher]


def step_flops(recipe: RecipeParams, networks: Networks, num_processes: int, *, recompute: str = "none") -> StepFlops:
    """Operations of a step of all processes together."""
    counting = OURS._replace(recompute="block" if recompute == "block" else "none")
    if networks.students:
        students = networks.students.values()
        return distillation_flops_per_step(
            recipe, networks.teacher, students, num_processes=num_processes, counting=counting
        )
    return flops_per_step(recipe, networks.teacher, num_processes=num_processes, counting=counting)


def step_seconds(recipe: RecipeParams, networks: Networks, gpu: GPU, num_processes: int, mfu: float) -> float:
    """Of a step on so many GPUs, each of which does the share `mfu` of its peak; recomputed blocks come on top."""
    kept = step_flops(recipe, networks, num_processes)
    again = step_flops(recipe, networks, num_processes, recompute=recipe.efficiency.recompute)
    done = kept.total + again.executed - kept.executed
    return done / (num_processes * gpu.peak_tflops * 1e12 * mfu)


def memories_of_process(recipe: RecipeParams, networks: Networks, num_processes: int) -> dict[str, Memory]:
    """Of rank 0, which holds the most, by what is recomputed. Raises InputError as training would."""
    from dinov2.train.rehearse import rehearse_holdings  # torch

    how = recipe.efficiency
    images = images_of_process(recipe.batch_size, recipe.group_size, num_processes, num_parts=how.num_micro_batches)
    holdings = {
        name: rehearse_holdings(network, how, rank=0, num_processes=num_processes)
        for name, network in {"": networks.teacher, **networks.students}.items()
    }
    at_once, found = images // how.num_micro_batches, {}
    for recompute in RECOMPUTE:
        counting = OURS._replace(recompute=recompute)
        if networks.students:
            students = [(student, holdings[name]) for name, student in networks.students.items()]
            found[recompute] = memory_of_distillation(
                recipe, holdings[""], students, num_images=at_once, counting=counting
            )
        else:
            found[recompute] = memory_of_process(
                recipe, networks.teacher, holdings[""], num_images=at_once, counting=counting
            )
    return found


def kept_like(recipe: RecipeParams) -> str:
    """Whose activations a recipe keeps: compiled blocks recompute what is pointwise by themselves."""
    how = recipe.efficiency
    return "pointwise" if how.compile and how.recompute == "none" else how.recompute


def one_checkpoint(networks: Networks) -> int:
    """Bytes of a checkpoint; a frozen teacher is an input."""
    return sum(checkpoint_bytes(num_parameters(network)) for network in networks.learners)


def stored_bytes(recipe: RecipeParams, networks: Networks) -> int:
    """Most that a training has on disk: the checkpoints that stay, one that is being written, and what comes out."""
    checkpoints = (recipe.keep_checkpoints + 1) * one_checkpoint(networks)
    backbones = sum(4 * backbone_parameters(network.model) for network in networks.learners)
    return checkpoints + backbones + (0 if networks.students else 2 * 4 * num_parameters(networks.teacher))
