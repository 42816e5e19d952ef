"""Memory of one process's GPU in a step, estimated by arithmetic alone. Imports no torch.

Weights and all that is kept of them are exact. Activations are counted tensor by tensor as autograd keeps them where
blocks are not compiled and attention is one fused kernel (a test compares); compiled blocks keep about what `pointwise`
recomputation does. Room for gathered weights and for the losses' work is an estimate. What CUDA, NCCL and a fragmented
heap take is not in here.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from dinov2.models.params import ViTParams
from dinov2.train.flops import KEPT_LOGITS_BYTES, OURS, Counting, compared_everywhere, heads_with_rows, swiglu_dim
from dinov2.train.params import Architecture, RecipeParams
from dinov2.train.workload import Workload, workload

MASTER_BYTES = 4  # master weights, their gradients, the optimiser's two states and the teacher are fp32
BLOCK_LOGITS = 2**26  # logits of one block on a GPU (as losses/prototypes.py has it)
LIVE_MATRICES = 5  # of logits, at the worst place: teacher's, student's, targets, gradient, and one being made


class Holdings(NamedTuple):
    """Parameters of a network (student and teacher have equally many) as a process holds them."""

    local: int
    """Of its own: a shard of each, all where there is one process."""
    block: int
    """Of one whole block: gathered where they are sharded."""
    embeddings: int
    """Of what a backbone has beside its blocks: gathered through a step, as heads are."""
    heads: int
    """Of all heads."""
    sharded: bool


class Memory(NamedTuple):
    """Bytes by what they are for."""

    weights: int
    gradients: int
    optimizer: int
    """AdamW's two means."""
    teacher: int
    gathered: int
    """Whole weights of what is being computed, in the arithmetic's precision, and their gradients on the way."""
    batch: int
    """Crops, as they come and in the arithmetic's precision."""
    activations: int
    """What the student's forward leaves for its backward."""
    logits: int
    """The losses' workspace."""

    @property
    def total(self) -> int:
        """All of it: the peak, which is where the backward pass begins."""
        return sum(self)


def memory_of_process(
    recipe: RecipeParams,
    architecture: Architecture,
    holdings: Holdings,
    *,
    num_images: int,
    counting: Counting = OURS,
) -> Memory:
    """Of a process that holds `holdings` and computes `num_images` at a time."""
    work = workload(recipe, architecture.model, num_images)
    width = 4 if recipe.efficiency.precision == "fp32" else 2
    crops = recipe.crops
    pixels = num_images * 3 * (2 * crops.global_size_px**2 + crops.num_local * crops.local_size_px**2)
    return Memory(
        weights=holdings.local * MASTER_BYTES,
        gradients=holdings.local * MASTER_BYTES,
        optimizer=2 * holdings.local * MASTER_BYTES,
        teacher=holdings.local * MASTER_BYTES,
        gathered=_gathered(holdings, width),
        batch=pixels * (4 + (width if width < 4 else 0)),
        activations=activation_bytes(architecture, work, width, counting),
        logits=_logits(architecture, work, counting),
    )


def memory_of_distillation(
    recipe: RecipeParams,
    teacher: Holdings,
    students: Sequence[tuple[Architecture, Holdings]],
    *,
    num_images: int,
    counting: Counting = OURS,
) -> Memory:
    """The same of a distillation: the frozen teacher's weights, and of every student its own and its average's.

    One student's activations are there at a time.
    """
    each = [
        memory_of_process(compared_everywhere(recipe), student, holdings, num_images=num_images, counting=counting)
        for student, holdings in students
    ]
    width = 4 if recipe.efficiency.precision == "fp32" else 2
    return Memory(
        weights=sum(memory.weights for memory in each),
        gradients=sum(memory.gradients for memory in each),
        optimizer=sum(memory.optimizer for memory in each),
        teacher=teacher.local * MASTER_BYTES + sum(memory.teacher for memory in each),
        gathered=max(_gathered(teacher, width), *(memory.gathered for memory in each)),
        batch=each[0].batch,
        activations=max(memory.activations for memory in each),
        logits=max(memory.logits for memory in each),
    )


def _gathered(holdings: Holdings, width: int) -> int:
    """Of a block, the one fetched ahead of it, and the rest: weights, gradients, and gradients on their way.

    Heads are gathered in fp32. One process has all in place; autocast then keeps a copy of the student's weights in 16
    bits through a step.
    """
    if not holdings.sharded:
        return holdings.local * width if width < MASTER_BYTES else 0
    student = (2 * holdings.block + holdings.embeddings) * 3 * width + holdings.heads * 3 * 4
    return student + holdings.embeddings * width + holdings.heads * 4


def activation_bytes(architecture: Architecture, work: Workload, width: int, counting: Counting) -> int:
    """What autograd keeps of the student: its blocks', in arithmetic of `width` bytes, and its heads'."""
    model = architecture.model
    tokens, kept = (sum(shape.tokens for shape in shapes) for shapes in (work.student, work.kept))
    mixing, projecting, feeding = _branch_bytes(model, width)
    whole = last = kept * (mixing + projecting + feeding + (8 * model.dim if model.drop_path > 0 else 0))
    given = tokens  # by the last block
    if counting.last_block == "needed":
        given = work.student_rows
        last = kept * mixing + given * (projecting + feeding)
    stream = tokens * 4 * model.dim  # a block's input, fp32
    if counting.recompute == "none":
        blocks = (model.depth - 1) * whole + last
    elif counting.recompute == "pointwise":
        products = kept * (width * (5 * model.dim + _ffn_products(model)) + 4 * model.heads)
        blocks = model.depth * (stream + products) + whole - products
    else:
        blocks = model.depth * stream + whole
    return blocks + given * 4 * model.dim + _heads_bytes(architecture, work, width)


def _branch_bytes(model: ViTParams, width: int) -> tuple[int, int, int]:
    """Of one token: until attention has mixed it, its projection, its feed-forward layer; not what adds it to others.

    A norm keeps its input and two statistics in fp32; a product its input, a scale its own, attention what it took,
    gave, and its log-sums. (Where a branch runs on a subset, index_add keeps what it adds as well.)
    """
    norm = 4 * model.dim + 8
    within = 8 * model.dim if model.ffn == "mlp" else 4 * swiglu_dim(model.dim)
    return (
        norm + width * 5 * model.dim + 4 * model.heads,
        width * 2 * model.dim,
        norm + width * (2 * model.dim + within),
    )


def _ffn_products(model: ViTParams) -> int:
    """Values that a feed-forward layer's products give for one token."""
    return 5 * model.dim if model.ffn == "mlp" else 2 * swiglu_dim(model.dim) + model.dim


def _heads_bytes(architecture: Architecture, work: Workload, width: int) -> int:
    """In and out of every hidden layer, and the bottleneck before and after it is made of unit length (fp32)."""
    total = 0
    for head, _, rows in heads_with_rows(architecture, work):
        hidden = 2 * head.hidden_dim * (head.num_layers - 1)
        total += rows * (width * (architecture.model.dim + hidden) + 8 * head.bottleneck_dim)
    return total


def _logits(architecture: Architecture, work: Workload, counting: Counting) -> int:
    """The larger head's matrices of logits; the gradient they leave is among the gathered ones."""
    sizes = [0]
    for head, teacher_rows, student_rows in heads_with_rows(architecture, work):
        whole = max(teacher_rows, student_rows) * head.num_prototypes
        live = whole if counting.logits == "whole" else min(whole, BLOCK_LOGITS)
        kept = 4 * whole if counting.logits == "blocks" and 4 * whole <= KEPT_LOGITS_BYTES else 0
        sizes.append(LIVE_MATRICES * 4 * live + kept)
    return max(sizes)


def num_parameters(architecture: Architecture) -> int:
    """Of a network: backbone and heads."""
    total = backbone_parameters(architecture.model)
    for head in filter(None, (architecture.dino_head, architecture.ibot_head)):
        widths = [architecture.model.dim, *[head.hidden_dim] * (head.num_layers - 1), head.bottleneck_dim]
        total += sum((width_in + 1) * width_out for width_in, width_out in pairwise(widths))
        total += head.num_prototypes * (head.bottleneck_dim + 1)
    return total


def backbone_parameters(model: ViTParams) -> int:
    """Of a backbone."""
    dim, hidden = model.dim, swiglu_dim(model.dim)
    ffn = 8 * dim * dim + 5 * dim if model.ffn == "mlp" else 3 * dim * hidden + 2 * hidden + dim
    block = 4 * dim * (dim + 1) + ffn + 6 * dim  # attention, feed-forward, two norms and two scales
    embed = (3 * model.patch_size**2 + 1) * dim
    tokens = (1 + model.grid**2 + model.num_registers + 2) * dim  # positions, registers, CLS and mask
    return embed + tokens + model.depth * block + 2 * dim


def checkpoint_bytes(num_parameters: int) -> int:
    """On disk: student, teacher and the optimiser's two means of every parameter, in fp32."""
    return 4 * MASTER_BYTES * num_parameters
