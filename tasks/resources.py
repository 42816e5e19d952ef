"""What each stage's job asks for, and of which machine: section `launch` of params.yaml."""

from typing import Annotated, Literal

from pydantic import Field

from dinov2.params import Params

MAX_WORKERS = 64  # elements of an array: a part is not an element, so that any number of parts is a few jobs


class Resources(Params):
    """What a stage's job asks for."""

    nodes: Annotated[int, Field(ge=1)]
    """Machines; more than one only on SLURM."""
    gpus_per_node: Annotated[int, Field(ge=0)]
    """One process a GPU; none: one process a node, on the CPU."""
    cpus_per_task: Annotated[int, Field(ge=1)]
    """Cores of each process; also its number of compute threads."""
    memory_gb: Annotated[int, Field(ge=1)]
    """Memory of each node (SLURM)."""
    timeout_min: Annotated[int, Field(ge=1)]
    """The job is stopped after this long; training saves first and is taken up again."""
    workers: Annotated[int, Field(ge=1, le=MAX_WORKERS)]
    """Jobs that share the parts of a stage that fans out, each with all of the above; on SLURM one array."""

    @property
    def tasks_per_node(self) -> int:
        """Processes a node."""
        return max(1, self.gpus_per_node)


class LaunchParams(Params):
    """Section `launch` of params.yaml: where and how, never what; no stage depends on it."""

    cluster: Literal["local", "slurm", "debug"]
    """`local`: a process here; `slurm`: sbatch; `debug`: in the calling process, for a debugger."""
    partition: str | None
    """SLURM partition; null: the cluster's default."""
    account: str | None
    """SLURM account; null: the user's default."""
    setup: list[str]
    """Shell lines that run before the job's Python, e.g. `module load cuda`."""
    default: Resources
    """Resources of a stage that `stages` does not name."""
    stages: dict[str, Resources]
    """Resources by stage."""

    def resources(self, stage: str) -> Resources:
        """What `stage` asks for."""
        return self.stages.get(stage, self.default)
