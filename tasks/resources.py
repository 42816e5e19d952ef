"""What each stage's job asks for, and of which machine: section `launch` of params.yaml."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, StringConstraints, field_validator, model_validator

from dinov2.params import InputError, Params

MAX_WORKERS = 64  # elements of an array: a part is not an element, so that any number of parts is a few jobs

Line = Annotated[str, StringConstraints(pattern=r"^[^\n\r]+$")]
"""A text that can't become a second line of the job's script."""
Option = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9-]*$")]
OURS = {  # options by which jobs are found again, followed and told to save
    "array", "chdir", "comment", "error", "job-name", "no-requeue", "open-mode", "output", "parsable", "requeue",
    "signal", "test-only", "wait", "wrap",
}  # fmt: skip


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
    max_running: Annotated[int, Field(ge=1)]
    """Of the workers, how many run at once (SLURM)."""
    partition: Line | None
    """SLURM partition; null: the cluster's default."""
    account: Line | None
    """SLURM account; null: the user's default."""
    constraint: Line | None
    """Features that the nodes must have, as sbatch reads them, e.g. `a100|h100`; null: any."""
    sbatch: dict[Option, Line | int]
    """Further options of sbatch, e.g. `{qos: high, reservation: vision}`."""
    setup: list[Line]
    """Shell lines that run before the job's Python, e.g. `module load cuda`."""
    python: Line | None
    """Command that starts Python on the nodes, e.g. `apptainer exec --nv image.sif python3`; null: this one's."""

    @field_validator("sbatch")
    @classmethod
    def _check_sbatch(cls, sbatch: dict[str, Any]) -> dict[str, Any]:
        if taken := ", ".join(sorted(OURS & sbatch.keys())):
            raise InputError(f"sbatch names {taken}, by which the launcher itself follows its jobs; take that out")
        return sbatch

    @property
    def tasks_per_node(self) -> int:
        """Processes a node."""
        return max(1, self.gpus_per_node)

    @property
    def num_tasks(self) -> int:
        """Processes of a job."""
        return self.nodes * self.tasks_per_node


class LaunchParams(Params):
    """Section `launch` of params.yaml: where and how, never what; no stage depends on it."""

    cluster: Literal["local", "slurm", "debug"]
    """`local`: a process here; `slurm`: sbatch; `debug`: in the calling process, for a debugger."""
    save_s: Annotated[int, Field(ge=1)]
    """So long before its time limit a job is told to save (SLURM looks every 30 s, so up to 30 s earlier)."""
    max_timeouts: Annotated[int, Field(ge=0)]
    """So often a job that reached its time limit is queued again."""
    default: Resources
    """Resources of a stage that `stages` does not name."""
    stages: dict[str, Resources]
    """Resources by stage; what a stage does not say is as in `default`."""

    @model_validator(mode="before")
    @classmethod
    def _as_default(cls, values: Any) -> Any:
        """Complete the stages with what `default` says."""
        if not (isinstance(values, dict) and isinstance(values.get("default"), dict)):
            return values
        stages = values.get("stages")
        if not isinstance(stages, dict):
            return values
        whole = {name: values["default"] | own if isinstance(own, dict) else own for name, own in stages.items()}
        return values | {"stages": whole}

    @model_validator(mode="after")
    def _check_time(self) -> Self:
        for name, asked in {"default": self.default, **self.stages}.items():
            if self.cluster == "slurm" and 60 * asked.timeout_min <= self.save_s:
                raise InputError(
                    f"the time limit of {name}, timeout_min {asked.timeout_min}, is not longer than save_s, "
                    f"{self.save_s} s, so that its job would be told to save as it starts; raise one or lower the other"
                )
        return self

    def resources(self, stage: str) -> Resources:
        """What `stage` asks for."""
        return self.stages.get(stage, self.default)
