"""What a training will cost and need, said before it runs: no inputs, no GPU, no process but this one.

Counted: images, tokens, FLOPs, parameters, shards, sizes. Estimated: memory (memory.py says how). Assumed, and called
so in the lines: the share of a GPU's peak, the size of an image, what CUDA takes.
"""

from collections.abc import Iterator
from math import ceil
from typing import NamedTuple

from dinov2.data.params import images_of_process
from dinov2.gpus import GPU, GPUS
from dinov2.params import InputError
from dinov2.train.costs import (
    RECOMPUTE,
    Networks,
    kept_like,
    memories_of_process,
    one_checkpoint,
    step_flops,
    step_seconds,
)
from dinov2.train.flops import StepFlops
from dinov2.train.memory import Memory, num_parameters
from dinov2.train.params import Architecture, RecipeParams
from dinov2.train.workload import workload

GIB = 2**30
RESERVE_GIB = 5.0
"""Assumed for what memory.py does not count: CUDA's context, NCCL's buffers, a fragmented heap."""


class Assumptions(NamedTuple):
    """What a plan of a training takes for granted.

    processes: how many there are; default: as many as launch gives.
    mfu: share of a GPU's bf16 peak at which the model's FLOPs are done (published DINOv2 runs: 0.31 to 0.39 on A100).
    image_kb: bytes of an image in the shards (ImageNet's JPEGs have about 110 kB).
    """

    processes: int | None = None
    mfu: float = 0.4
    image_kb: float = 110.0


class Launched(NamedTuple):
    """What launch gives the stage."""

    nodes: int
    gpus_per_node: int
    timeout_min: int

    @property
    def processes(self) -> int:
        """One a GPU, or one a node without any."""
        return self.nodes * max(1, self.gpus_per_node)


def plan_training(
    stage: str, recipe: RecipeParams, networks: Networks, launched: Launched, assumed: Assumptions
) -> Iterator[str]:
    """The plan, line by line.

    Raises InputError as training would (a batch that does not divide among the processes), after the lines that do not
    depend on it, and for assumptions out of range.
    """
    check_mfu(assumed.mfu)
    num_processes = launched.processes if assumed.processes is None else assumed.processes
    if num_processes < 1:
        raise InputError(f"--processes is {num_processes}; take at least 1")
    how = recipe.efficiency
    yield f"{stage}: what follows is counted, unless it says assumed or estimated"
    yield from _networks(networks)
    yield from _run(recipe, networks, step_flops(recipe, networks, num_processes), assumed)
    yield f"processes   {num_processes:,} ({_where(launched) if assumed.processes is None else 'as asked'})"
    for network in networks.learners:
        yield _shards(recipe, network, num_processes)
    num_images = images_of_process(
        recipe.batch_size, recipe.group_size, num_processes, num_parts=how.num_micro_batches
    )
    at_once = num_images // how.num_micro_batches
    yield f"batch       {num_images} images a process, {at_once} at a time, in groups of {recipe.group_size}"
    memories = memories_of_process(recipe, networks, num_processes)
    yield from _memory(memories, recipe)
    if launched.gpus_per_node == 0 and assumed.processes is None:
        yield f"time        not estimated: launch gives {stage} no GPU"
        return
    seconds = {gpu: step_seconds(recipe, networks, gpu, num_processes, assumed.mfu) for gpu in GPUS.values()}
    hours = {gpu: step_s * recipe.num_steps / 3600 for gpu, step_s in seconds.items()}
    fits = {gpu: _fit(gpu, memories, recipe) for gpu in GPUS.values()}
    yield f"time        at an assumed MFU of {assumed.mfu:g}; memory with {RESERVE_GIB:g} GiB assumed for CUDA and NCCL"
    yield from _table(seconds, hours, fits, limit_h=launched.timeout_min / 60, num_processes=num_processes)


def check_mfu(mfu: float) -> None:
    """Raise InputError for what is no share."""
    if not 0 < mfu <= 1:
        raise InputError(f"--mfu is {mfu}, no share of a GPU's peak; take one above 0, up to 1")


def _where(launched: Launched) -> str:
    nodes = "1 node" if launched.nodes == 1 else f"{launched.nodes} nodes"
    gpus = {0: "without GPUs", 1: "of 1 GPU"}.get(launched.gpus_per_node, f"of {launched.gpus_per_node} GPUs")
    return f"{nodes} {gpus}"


def _networks(networks: Networks) -> Iterator[str]:
    if not networks.students:
        yield f"networks    {_about(networks.teacher, 'in student and teacher each')}"
        return
    yield f"networks    {_about(networks.teacher, 'of the frozen teacher')}"
    for name, student in networks.students.items():
        yield f"            {_about(student, f'in {name} and its average each')}"


def _about(architecture: Architecture, where: str) -> str:
    model = architecture.model
    heads = sum(1 for head in (architecture.dino_head, architecture.ibot_head) if head)
    return (
        f"{num_parameters(architecture):,} parameters with {heads} head{'s' if heads > 1 else ''}, {where}: "
        f"{model.depth} blocks of {model.dim}, {model.ffn}, patches of {model.patch_size} px"
    )


def _run(recipe: RecipeParams, networks: Networks, flops: StepFlops, assumed: Assumptions) -> Iterator[str]:
    """Steps, images, tokens, FLOPs, bytes read, checkpoints."""
    steps, num_images = recipe.num_steps, recipe.num_steps * recipe.batch_size
    teacher = _tokens(recipe, networks.teacher, of_teacher=True)
    student = sum(_tokens(recipe, network, of_teacher=False) for network in networks.learners)
    whose = f"{len(networks.students)} students" if networks.students else "student"
    yield f"run         {steps:,} steps of {recipe.batch_size:,} images: {num_images:,} images"
    yield (
        f"tokens      {student} in the {whose} and {teacher} in the teacher an image; "
        f"{(student + teacher) * recipe.batch_size:,} a step, {(student + teacher) * num_images:.3g} in the run"
    )
    parts = ", ".join(
        f"{name.replace('_', ' ')} {_tera(value)}" for name, value in flops._asdict().items() if name != "recomputed"
    )
    yield f"FLOPs       {_tera(flops.total)} TFLOP a step, {flops.total * steps:.3g} FLOP in the run"
    yield f"            {parts}; {_tera(flops.recomputed)} more are done again to save memory"
    yield f"            {flops.total / recipe.batch_size / 1e9:,.0f} GFLOP an image"
    read = _size(num_images * assumed.image_kb * 1e3)
    yield f"reads       {read}, at an assumed {assumed.image_kb:g} kB an image"
    size = one_checkpoint(networks)
    yield (
        f"checkpoint  {_size(size)} every {recipe.checkpoint_every_steps:,} steps; the newest "
        f"{recipe.keep_checkpoints} stay: {_size(recipe.keep_checkpoints * size)}"
    )


def _tokens(recipe: RecipeParams, architecture: Architecture, *, of_teacher: bool) -> int:
    """Of an image."""
    one = workload(recipe, architecture.model, recipe.group_size)
    return sum(shape.tokens for shape in (one.teacher if of_teacher else one.student)) // one.images


def _size(num_bytes: int | float) -> str:
    """Bytes on disk, in the unit (of powers of 1,000) that suits."""
    for unit, factor in (("TB", 1e12), ("GB", 1e9)):
        if num_bytes >= factor:
            return f"{num_bytes / factor:,.1f} {unit}"
    return f"{num_bytes / 1e6:,.1f} MB"


def _tera(value: int) -> str:
    """A count of operations in 10^12, to three figures or the whole number."""
    tera = value / 1e12
    return f"{tera:,.0f}" if tera >= 100 else f"{tera:.3g}"


def _shards(recipe: RecipeParams, architecture: Architecture, num_processes: int) -> str:
    """What rank 0, which holds the most, has of a network; built on the meta device."""
    from dinov2.train.rehearse import rehearse_holdings  # torch only here and in costs.py

    first, last = (
        rehearse_holdings(architecture, recipe.efficiency, rank=rank, num_processes=num_processes)
        for rank in (0, num_processes - 1)
    )
    if num_processes == 1:
        return "shards      none: one process holds whole networks"
    num_shards = recipe.efficiency.shard_processes or num_processes
    sizes = f"{4 * first.local / 2**20:,.1f} MiB in fp32"
    return (
        f"shards      {num_shards:,}, built on the meta device: of a network's parameters rank 0 holds "
        f"{first.local:,}, the most ({sizes}), and the last rank {last.local:,}"
    )


def _memory(memories: dict[str, Memory], recipe: RecipeParams) -> Iterator[str]:
    how = recipe.efficiency
    yield f"memory      GiB of rank 0, estimated for {how.precision}"
    memory = memories[kept_like(recipe)]
    parts = [f"{name} {value / GIB:.2f}" for name, value in memory._asdict().items() if name != "activations"]
    yield f"            {', '.join(parts)}"
    for recompute, memory in memories.items():
        mark = ""
        if recompute == kept_like(recipe):
            mark = "  (this recipe)" if recompute == how.recompute else "  (this recipe, whose blocks are compiled)"
        yield (
            f"            recompute {recompute:<10} activations {memory.activations / GIB:6.2f}   "
            f"in all {memory.total / GIB:6.2f}{mark}"
        )


def _fit(gpu: GPU, memories: dict[str, Memory], recipe: RecipeParams) -> str:
    """Whether it fits into the GPU's memory, and else what would."""
    needs = {recompute: memory.total / GIB + RESERVE_GIB for recompute, memory in memories.items()}
    kept = kept_like(recipe)
    if needs[kept] <= gpu.memory_gib:
        return "fits"
    short = f"{needs[kept] - gpu.memory_gib:.1f} GiB short"
    for recompute in RECOMPUTE[RECOMPUTE.index(kept) + 1 :]:
        if needs[recompute] <= gpu.memory_gib:
            return f"{short}; recompute: {recompute} fits"
    return f"{short}; take more micro-batches or processes"


def _table(
    seconds: dict[GPU, float], hours: dict[GPU, float], fits: dict[GPU, str], *, limit_h: float, num_processes: int
) -> Iterator[str]:
    """Of each GPU: seconds a step, hours of the run, and whether time and memory suffice."""
    head = f"{'bf16 peak':>11} {'step':>9} {'run':>9} {'GPU-hours':>10}"
    yield f"            {'':<10}{head}  {f'within {limit_h:g} h of launch':<24} memory"
    for gpu, step_s in seconds.items():
        num_jobs = ceil(hours[gpu] / limit_h)
        within = "fits" if num_jobs <= 1 else f"{hours[gpu] - limit_h:,.1f} h short: {num_jobs} jobs"
        row = f"{gpu.peak_tflops:>6g} TF/s {step_s:>7.3g} s {hours[gpu]:>7,.1f} h {hours[gpu] * num_processes:>10,.0f}"
        yield f"            {gpu.name:<10}{row}  {within:<24} {gpu.memory_gib:g} GiB: {fits[gpu]}"
    if max(hours.values()) > limit_h:
        yield f"            a job is stopped after {limit_h:g} h, saves, and is taken up again by the next"
