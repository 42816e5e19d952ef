"""Floating-point operations of a step, by arithmetic alone: a product of [m k] and [k n] has 2 m k n.

Matrix products, attention and the patch embedding are counted, as torch.utils.flop_counter counts them; what works
element by element (norms, GELU, softmax, optimiser) is not, here as there. Imports no torch.
"""

from collections.abc import Iterable
from itertools import pairwise
from typing import Literal, NamedTuple

from dinov2.data.params import MaskParams
from dinov2.models.params import HeadParams, ViTParams
from dinov2.train.params import Architecture, RecipeParams
from dinov2.train.workload import Shape, Workload, workload

KEPT_LOGITS_BYTES = 2**28  # logits that fit here stay between passes (as losses/prototypes.py has it)


Rows = list[tuple[HeadParams, int, int]]
"""Heads, and how many rows pass each of the teacher's and of the student's."""


class Counting(NamedTuple):
    """How a step is done, as far as that changes what it costs and keeps."""

    last_block: Literal["needed", "all"]
    """`needed`: only tokens that a loss looks at are projected and fed forward in the last block; `all`: all are."""
    logits: Literal["blocks", "whole"]
    """`blocks`: computed anew for every pass over them, unless they are small; `whole`: once, and kept."""
    recompute: Literal["none", "pointwise", "block"]
    """Activations computed again in the backward pass: none, all but products' and attention's, or whole blocks'."""


OURS = Counting(last_block="needed", logits="blocks", recompute="none")
REFERENCE = Counting(last_block="all", logits="whole", recompute="none")


class StepFlops(NamedTuple):
    """Operations of one step of all images together."""

    teacher: int
    """Forward of the teacher's backbone."""
    student_forward: int
    """Forward of the student's backbone."""
    student_backward: int
    """Backward of the student's backbone: twice its forward, but nothing for images."""
    heads: int
    """Heads of both, forward and backward, with the losses' own products."""
    recomputed: int
    """What is done a second time to save memory: attention scores, logits, blocks."""

    @property
    def total(self) -> int:
        """Without what is recomputed: the number that model FLOP/s and MFU are about."""
        return self.teacher + self.student_forward + self.student_backward + self.heads

    @property
    def executed(self) -> int:
        """With it."""
        return self.total + self.recomputed


def flops_per_step(
    recipe: RecipeParams, architecture: Architecture, *, num_processes: int, counting: Counting = OURS
) -> StepFlops:
    """What one step of `batch_size` images costs, all processes together.

    `num_processes` only decides which logits are small enough for a process to keep.
    """
    teacher = _teaching(recipe, architecture, num_processes, counting)
    return _added([teacher, _learning(recipe, architecture, num_processes, counting)])


def distillation_flops_per_step(
    recipe: RecipeParams,
    teacher: Architecture,
    students: Iterable[Architecture],
    *,
    num_processes: int,
    counting: Counting = OURS,
) -> StepFlops:
    """The same of a distillation: one pass of the frozen teacher, and a step of every student."""
    recipe = compared_everywhere(recipe)
    learning = [_learning(recipe, student, num_processes, counting) for student in students]
    asked_again = 0
    if counting.logits == "blocks":  # by the loss of each student beyond the first
        rows = heads_with_rows(teacher, workload(recipe, teacher.model, recipe.batch_size))
        asked_again = (len(learning) - 1) * sum(asked * _logits(head) for head, asked, _ in rows)
    return _added([_teaching(recipe, teacher, num_processes, counting), *learning, StepFlops(0, 0, 0, 0, asked_again)])


def compared_everywhere(recipe: RecipeParams) -> RecipeParams:
    """A distillation's recipe: no patch is hidden, and the patch-level loss compares all of them."""
    return recipe.model_copy(update={"masks": MaskParams(probability=1.0, ratio_min=1.0, ratio_max=1.0)})


def _added(parts: list[StepFlops]) -> StepFlops:
    return StepFlops(*(sum(values) for values in zip(*parts, strict=True)))


def _teaching(recipe: RecipeParams, architecture: Architecture, num_processes: int, counting: Counting) -> StepFlops:
    """The teacher's part of a step."""
    model, work = architecture.model, workload(recipe, architecture.model, recipe.batch_size)
    rows = [(head, asked, 0) for head, asked, _ in heads_with_rows(architecture, work)]
    backbone = _blocks(model, work.teacher, work.teacher_rows if counting.last_block == "needed" else None)
    again = _logits_again(recipe, rows, num_processes) if counting.logits == "blocks" else 0
    return StepFlops(backbone + _embed(model, work.teacher), 0, 0, _heads(model, rows), again)


def _learning(recipe: RecipeParams, architecture: Architecture, num_processes: int, counting: Counting) -> StepFlops:
    """The student's part of a step, and the losses'."""
    model, work = architecture.model, workload(recipe, architecture.model, recipe.batch_size)
    rows = [(head, 0, answered) for head, _, answered in heads_with_rows(architecture, work)]
    blocks = _blocks(model, work.kept, work.student_rows if counting.last_block == "needed" else None)
    embed = _embed(model, work.student)
    again = _attention(model, work.kept) * model.depth // 2  # the backward pass makes the scores once more
    if counting.recompute == "block":
        again += blocks
    if counting.logits == "blocks":
        again += _logits_again(recipe, rows, num_processes)
    heads = _heads(model, rows) + _losses(recipe, architecture, work)
    return StepFlops(0, blocks + embed, 2 * blocks + embed, heads, again)


def _blocks(model: ViTParams, shapes: list[Shape], needed_rows: int | None) -> int:
    """Forward of all blocks; with `needed_rows`, only so many tokens pass the last one's projection and beyond."""
    if not shapes:
        return 0
    tokens = sum(shape.tokens for shape in shapes)
    mixing = tokens * 6 * model.dim**2 + _attention(model, shapes)  # 2 dim * 3 dim for queries, keys and values
    feeding = 2 * model.dim**2 + _ffn(model)  # of one token
    last = tokens if needed_rows is None else needed_rows
    return model.depth * mixing + ((model.depth - 1) * tokens + last) * feeding


def _attention(model: ViTParams, shapes: list[Shape]) -> int:
    """Forward of one block's attention: scores and their weighted values, each 2 length^2 dim."""
    return sum(shape.samples * 4 * shape.length**2 * model.dim for shape in shapes)


def _ffn(model: ViTParams) -> int:
    """Of one token: two matrices dim x 4 dim, or three dim x hidden (layers.SwiGLU)."""
    return 2 * model.dim * (8 * model.dim if model.ffn == "mlp" else 3 * swiglu_dim(model.dim))


def swiglu_dim(dim: int) -> int:
    """Hidden width of a gated feed-forward layer, a multiple of 8 (layers.SwiGLU)."""
    return (int(4 * dim * 2 / 3) + 7) // 8 * 8


def _embed(model: ViTParams, shapes: list[Shape]) -> int:
    patches = sum(shape.samples * (shape.length - 1 - model.num_registers) for shape in shapes)
    return patches * 2 * 3 * model.patch_size**2 * model.dim


def heads_with_rows(architecture: Architecture, work: Workload) -> Rows:
    """Each head with the rows it gets of the teacher and of the student; tied heads are one."""
    image, patch = architecture.dino_head, architecture.ibot_head
    if patch is None:
        return [(image, work.teacher_cls + work.masked_patches, work.student_cls + work.masked_patches)]
    return [(image, work.teacher_cls, work.student_cls), (patch, work.masked_patches, work.masked_patches)]


def _heads(model: ViTParams, rows: Rows) -> int:
    total = 0
    for head, teacher_rows, student_rows in rows:
        widths = [model.dim, *[head.hidden_dim] * (head.num_layers - 1), head.bottleneck_dim]
        mlp = sum(2 * width_in * width_out for width_in, width_out in pairwise(widths))
        total += (teacher_rows + 3 * student_rows) * (mlp + _logits(head))
    return total


def _logits(head: HeadParams) -> int:
    return 2 * head.bottleneck_dim * head.num_prototypes


def _losses(recipe: RecipeParams, architecture: Architecture, work: Workload) -> int:
    """KoLeo's cosines of every image with its group's (which is nearest has no gradient), and the sums of both global
    crops' targets that each of the student's crops is asked."""
    cosines = 2 * work.spread_cls * recipe.group_size * architecture.model.dim
    return cosines + 2 * 2 * work.student_cls * architecture.dino_head.num_prototypes


def _logits_again(recipe: RecipeParams, rows: Rows, num_processes: int) -> int:
    """Logits beyond the first time: of the teacher for each pass that makes targets, and for the loss that asks them;
    of the student for the loss after their log-sum. Small ones are kept between passes, not for the loss."""
    passes = recipe.loss.sinkhorn_iterations if recipe.loss.centering == "sinkhorn" else 1
    total = 0
    for head, teacher_rows, student_rows in rows:
        kept = KEPT_LOGITS_BYTES * num_processes // (4 * head.num_prototypes)  # rows, of all processes
        total += teacher_rows * _logits(head) * (1 if teacher_rows <= kept else passes)
        total += student_rows * _logits(head) * (0 if student_rows <= kept * recipe.efficiency.num_micro_batches else 1)
    return total
