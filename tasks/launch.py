"""Where a stage runs: in a process of this machine, on SLURM, or in this very process; always through submitit.

A submission is remembered in `<folder>/job.json`. Called again while it lives, `run_jobs` follows it instead of
submitting twice; called after it ended unwatched, it takes its results. Results are trusted only when every rank has
left one, since a scheduler's word about a killed or requeued job is not reliable.
"""

import contextlib
import json
import os
import signal
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import psutil
import submitit
from submitit.core.utils import FailedSubmissionError, JobPaths, pickle_load

from dinov2.params import InputError, Params, validate
from dinov2.records import write_json
from tasks.follow import follow
from tasks.resources import LaunchParams

ACTIVE = {
    "PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "REQUEUED", "REQUEUE_HOLD", "RESIZING",
}  # fmt: skip


class Submission(Params):
    """A job that was submitted, as `job.json` remembers it."""

    cluster: str
    job_id: str
    folder: str
    num_tasks: int
    process_started: float | None  # the local controller's start time, since process numbers are used again

    def paths(self, task: int) -> JobPaths:
        """Where submitit puts the files of one rank."""
        return JobPaths(self.folder, self.job_id, task)

    def process(self) -> psutil.Process | None:
        """The local job's controller, if it still lives."""
        try:
            process = psutil.Process(int(self.job_id))
            if process.create_time() == self.process_started and process.status() != psutil.STATUS_ZOMBIE:
                return process
        except psutil.NoSuchProcess:
            pass
        return None

    def is_alive(self) -> bool:
        """Whether the job is waiting or running. On SLURM by squeue: sacct calls a requeued job ended."""
        if self.cluster == "local":
            return self.process() is not None
        if self.cluster == "slurm":
            return slurm_state(self.job_id) in ACTIVE
        return False

    def outcomes(self) -> list[tuple[str, Any]]:
        """("success", value) or ("error", trace) of every rank that has left one."""
        pickles = [self.paths(task).result_pickle for task in range(self.num_tasks)]
        return [_load(path) for path in pickles if path.exists()]

    def cancel(self) -> None:
        """End the job and all its processes."""
        if self.cluster == "slurm":
            subprocess.run(["scancel", self.job_id], check=False)
            return
        controller = self.process()
        if controller is None:
            return
        family = [controller, *controller.children(recursive=True)]
        for process in family:
            _send(process, signal.SIGINT)
        _, alive = psutil.wait_procs(family, timeout=5)
        for process in alive:
            _send(process, signal.SIGKILL)


def _load(path: Path) -> tuple[str, Any]:
    try:
        return pickle_load(path)
    except Exception as error:  # cut short, or of an earlier version of this code
        return "error", f"{path} can't be read ({error})"


def _send(process: psutil.Process, number: signal.Signals) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        process.send_signal(number)


def slurm_state(job_id: str) -> str:
    """SLURM's word for the job's state; empty when it is no longer known."""
    command = ["squeue", "--noheader", "--states=all", f"--jobs={job_id}", "--format=%T"]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    if answer.returncode != 0 and "Invalid job id" not in answer.stderr:
        return "PENDING"  # the controller does not answer: not a sign that the job ended
    lines = answer.stdout.split()
    return lines[0] if lines else ""


def run_jobs(
    jobs: Sequence[Callable[[], Any]],
    *,
    stage: str,
    name: str,
    folder: Path,
    accept: Callable[[list[Any]], bool],
    params: LaunchParams,
    show: Callable[[str], None],
    gave_up: Callable[[Any], bool] = lambda _: False,
) -> list[list[Any]]:
    """Run independent jobs side by side (on SLURM as one array), each on every rank; returns what their ranks returned.

    `stage` picks the resources, `name` is the jobs', `folder` is their home and `show` gets each line a rank 0 prints.
    The results of jobs that ended earlier are taken only if `accept` says of each that they are still of use. A rank
    whose result `gave_up` ends its job: the others would wait for it; what they have left until then is returned.
    Raises JobFailedError when a rank failed or a job vanished, after the others ended; InputError for a refusal.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    if params.cluster == "debug":
        return [_executor(stage, name, folder, params).submit(job).results() for job in jobs]
    submissions = _remembered(folder / "job.json")
    numbers = ", ".join(submission.job_id for submission in submissions)
    if any(submission.is_alive() for submission in submissions):
        show(f"re-attaching to job {numbers}, which is still running")
    elif submissions and all(_succeeded(submission, accept) for submission in submissions):
        show(f"job {numbers} ended while nobody watched; taking its results")
    else:
        submissions = _submit(jobs, stage, name, folder, params)
    previous = {number: signal.signal(number, _cancelling(submissions)) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        return follow(submissions, show, gave_up)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def cancel_remembered(folder: Path, show: Callable[[str], None]) -> None:
    """Cancel the jobs that `folder` remembers, if they still live: this start does not follow them."""
    for submission in _remembered(folder / "job.json"):
        if submission.is_alive():
            show(f"cancelling job {submission.job_id}, which still works with other params, inputs or workers")
            submission.cancel()


def _remembered(path: Path) -> list[Submission]:
    if not path.exists():
        return []
    return [validate(Submission, about, where=str(path)) for about in json.loads(path.read_text())]


def _succeeded(submission: Submission, accept: Callable[[list[Any]], bool]) -> bool:
    outcomes = submission.outcomes()
    whole = len(outcomes) == submission.num_tasks and all(kind == "success" for kind, _ in outcomes)
    return whole and accept([value for _, value in outcomes])


def _executor(stage: str, name: str, folder: Path, params: LaunchParams) -> submitit.AutoExecutor:
    resources = params.resources(stage)
    executor = submitit.AutoExecutor(folder=folder, cluster=params.cluster)
    executor.update_parameters(
        name=name,
        nodes=resources.nodes,
        tasks_per_node=resources.tasks_per_node,
        gpus_per_node=resources.gpus_per_node,
        cpus_per_task=resources.cpus_per_task,
        mem_gb=resources.memory_gb,
        timeout_min=resources.timeout_min,
        stderr_to_stdout=True,
    )
    if params.cluster == "slurm":
        optional = {"slurm_partition": params.partition, "slurm_account": params.account}
        executor.update_parameters(
            slurm_srun_args=["--kill-on-bad-exit=1"],
            slurm_setup=params.setup,
            **{key: value for key, value in optional.items() if value is not None},
        )
    return executor


def _submit(
    jobs: Sequence[Callable[[], Any]], stage: str, name: str, folder: Path, params: LaunchParams
) -> list[Submission]:
    attempts = [int(path.name) for path in (folder / "attempts").glob("*")]
    attempt = folder / "attempts" / str(max(attempts, default=0) + 1)  # of its own: job numbers are used again
    attempt.mkdir(parents=True, mode=0o700)
    resources = params.resources(stage)
    executor = _executor(stage, name, attempt, params)
    try:
        submitted = [executor.submit(jobs[0])] if len(jobs) == 1 else executor.submit_array(list(jobs))
    except (FailedSubmissionError, ValueError) as error:
        reason = str(error).strip().splitlines()[-1]
        what = f"{params.cluster} refused the job of {stage}"
        raise InputError(f"{what}: {reason}; mend `launch:` in params.yaml") from error
    submissions = [
        Submission(
            cluster=params.cluster,
            job_id=str(job.job_id),
            folder=str(attempt),
            num_tasks=resources.nodes * resources.tasks_per_node,
            process_started=psutil.Process(int(job.job_id)).create_time() if params.cluster == "local" else None,
        )
        for job in submitted
    ]
    write_json(folder / "job.json", [submission.model_dump() for submission in submissions])
    return submissions


def _cancelling(submissions: Sequence[Submission]) -> Callable[[int, FrameType | None], NoReturn]:
    def cancel(number: int, frame: FrameType | None) -> NoReturn:
        for submission in submissions:
            submission.cancel()
        numbers = ", ".join(submission.job_id for submission in submissions)
        raise KeyboardInterrupt(f"stopped by signal {number}; job {numbers} was cancelled")

    return cancel


def export_rank() -> None:
    """Set RANK, WORLD_SIZE, MASTER_ADDR, ... for torch.distributed, where the job has several processes."""
    if submitit.JobEnvironment().num_tasks > 1:
        submitit.helpers.TorchDistributedEnvironment().export(set_cuda_visible_devices=False, overwrite=True)


def is_first_rank() -> bool:
    """Whether this process is rank 0 of its job."""
    return int(os.environ.get("RANK", "0")) == 0


def job_number() -> str:
    """The number that the scheduler gave to the job this runs in."""
    return submitit.JobEnvironment().job_id


def resubmission(job: Callable[[], Any]) -> Any:
    """What submitit wants of a job that is to be queued again as it is."""
    return submitit.helpers.DelayedSubmission(job)
