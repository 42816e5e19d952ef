"""What every stage will hold and take, in numbers, by the same arithmetic as its own `--plan`.

Hours are those of the machines that launch gives; GPU-hours and core-hours are what they are held for, busy or not.
"""

from importlib import import_module
from math import ceil
from pathlib import Path
from typing import Any, NamedTuple

from dinov2.curation.costs.plan import Cost, costs_of
from dinov2.curation.costs.rates import read_rates
from dinov2.curation.costs.sizes import Assumed, read_sizes
from dinov2.curation.costs.stages import STAGES as CURATION
from dinov2.gpus import GPU, GPUS
from dinov2.params import InputError, load_section, read_yaml
from dinov2.train.costs import Networks, kept_like, memories_of_process, step_seconds, stored_bytes
from dinov2.train.params import RecipeParams
from dinov2.train.plan import RESERVE_GIB, Assumptions, check_mfu
from tasks.plan import machines_of, stage_params
from tasks.resources import LaunchParams, Resources

GIB = 2**30


class Need(NamedTuple):
    """What a stage holds and takes. None: not counted."""

    stage: str
    jobs: int | None
    """Jobs, elements of arrays among them, that one after the other or side by side do it."""
    resources: Resources
    hours: float | None
    """From its start to its end, without waiting in a queue."""
    held_jobs_hours: float | None
    """Hours of all jobs together."""
    written_bytes: float | None
    """To disk and store."""
    memory_bytes: float | None
    """Of a process."""
    memory_on_gpu: bool
    notes: tuple[str, ...]
    """What is short, and what is not counted."""

    @property
    def gpu_hours(self) -> float | None:
        """Of all GPUs that its jobs hold."""
        if self.resources.gpus_per_node == 0:
            return 0.0
        each = self.resources.nodes * self.resources.gpus_per_node
        return None if self.held_jobs_hours is None else each * self.held_jobs_hours

    @property
    def core_hours(self) -> float | None:
        """Of all cores that its jobs hold."""
        each = self.resources.num_tasks * self.resources.cpus_per_task
        return None if self.held_jobs_hours is None else each * self.held_jobs_hours


def needs(stages: list[str], params_file: Path, curation: Assumed, training: Assumptions) -> list[Need]:
    """Of each stage. Raises InputError for params that no plan can be made of, naming the stage."""
    check_mfu(training.mfu)
    if curation.gpu not in GPUS:
        raise InputError(f"--gpu is '{curation.gpu}'; take one of {', '.join(GPUS)}")
    return [_need(stage, params_file, curation, training) for stage in stages]


def _need(stage: str, params_file: Path, curation: Assumed, training: Assumptions) -> Need:
    module: Any = import_module(f"tasks.{stage}")
    params = stage_params(params_file, stage, module)
    launch = load_section(params_file, "launch", LaunchParams)
    resources = launch.resources(stage)
    try:
        if stage in CURATION:
            return _of_curation(stage, params_file, launch, curation)
        if hasattr(module, "networks_of"):
            networks = module.networks_of(params, params_file=params_file)
            if networks is None:
                return _uncounted(stage, 1, resources, "takes a given backbone as it is; nothing is trained")
            return _of_training(stage, params, networks, resources, (GPUS[curation.gpu], training.mfu))
    except InputError as error:
        raise InputError(f"{stage}: {error}") from error
    models = read_yaml(params_file).get("models")
    jobs = len(models) if stage == "evaluate" and isinstance(models, dict) else 1
    return _uncounted(stage, jobs, resources, "not counted")


def _uncounted(stage: str, jobs: int, resources: Resources, note: str) -> Need:
    return Need(stage, jobs, resources, None, None, None, None, False, (note,))


def _of_curation(stage: str, params_file: Path, launch: LaunchParams, assumed: Assumed) -> Need:
    machines, resources = machines_of(launch, stage), launch.resources(stage)
    found = costs_of(stage, read_sizes(params_file, assumed), read_rates(assumed), machines)
    costs = [cost for cost in found if not cost.work.before_jobs]
    at_once = [1 if resources.workers == 1 else ceil(cost.processes / resources.num_tasks) for cost in costs]
    jobs = [min(resources.workers, ceil(cost.work.parts / resources.num_tasks)) for cost in costs]  # some come later
    memory = max(cost.work.memory for cost in costs)
    hours = [num * cost.hours for num, cost in zip(at_once, costs, strict=True)]
    longest = max(held / num for num, held in zip(jobs, hours, strict=True)) if resources.workers > 1 else sum(hours)
    return Need(
        stage=stage,
        jobs=sum(jobs) if resources.workers > 1 else 1,
        resources=resources,
        hours=sum(cost.hours for cost in found),
        held_jobs_hours=sum(hours),
        written_bytes=sum(cost.work.written for cost in costs),
        memory_bytes=memory,
        memory_on_gpu=False,
        notes=tuple(_short(_node_memory(costs, resources), resources, longest)),
    )


def _node_memory(costs: list[Cost], resources: Resources) -> float:
    """Of the processes that a node has at once."""
    return max(min(cost.processes, resources.tasks_per_node) * cost.work.memory for cost in costs)


def _short(node_bytes: float, resources: Resources, job_hours: float) -> list[str]:
    """What launch gives too little of."""
    notes = []
    if node_bytes > resources.memory_gb * 1e9:
        notes.append(f"needs {node_bytes / 1e9:,.0f} GB a node, launch gives {resources.memory_gb:,}")
    limit_h = resources.timeout_min / 60
    if job_hours > limit_h:
        notes.append(f"a job takes {job_hours:,.0f} h, its limit is {limit_h:g} h")
    return notes


def _of_training(
    stage: str, recipe: RecipeParams, networks: Networks, resources: Resources, assumed: tuple[GPU, float]
) -> Need:
    (gpu, mfu), limit_h, hours, notes = assumed, resources.timeout_min / 60, None, []
    memory = memories_of_process(recipe, networks, resources.num_tasks)[kept_like(recipe)].total
    if resources.gpus_per_node:
        hours = step_seconds(recipe, networks, gpu, resources.num_tasks, mfu) * recipe.num_steps / 3600
        if (short := memory / GIB + RESERVE_GIB - gpu.memory_gib) > 0:
            notes.append(f"{short:.0f} GiB short on a {gpu.name}")
        apart_h = hours * recipe.checkpoint_every_steps / recipe.num_steps
        if apart_h > limit_h:
            notes.append(f"saves every {apart_h:.1f} h, a job has {limit_h:g} h: lower checkpoint_every_steps")
        if hours > limit_h:
            notes.append(f"stopped after {limit_h:g} h each, saved and taken up again")
    else:
        notes.append("no GPU: time is not estimated")
    return Need(
        stage=stage,
        jobs=None if hours is None else max(1, ceil(hours / limit_h)),
        resources=resources,
        hours=hours,
        held_jobs_hours=hours,
        written_bytes=stored_bytes(recipe, networks),
        memory_bytes=memory,
        memory_on_gpu=resources.gpus_per_node > 0,
        notes=tuple(notes),
    )
