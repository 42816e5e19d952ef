"""Where a stage runs: in a process of this machine, on SLURM, or in this very process; always through submitit.

A submission is remembered in `<folder>/job.json`. Called again while it lives, `run_jobs` follows it instead of
submitting twice; called after it ended unwatched, it takes its results. Results are trusted only when every rank has
left one, since a scheduler's word about a killed or requeued job is not reliable.
"""

import os
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import psutil
import submitit
from submitit.core.utils import FailedJobError, FailedSubmissionError, JobPaths, pickle_load

from dinov2.params import InputError, Params, validate
from dinov2.records import read_json, write_json
from dinov2.trusted import check_private, make_private
from tasks import slurm
from tasks.follow import POLL_S, JobFailedError, end_all, follow, let_end
from tasks.processes import end, living, running, start_time
from tasks.resources import LaunchParams


class Submission(Params):
    """A job that was submitted, as `job.json` remembers it."""

    cluster: str
    job_id: str
    folder: str
    num_tasks: int
    process_started: float | None  # the local controller's, since process numbers are used again

    def paths(self, task: int) -> JobPaths:
        """Where submitit puts the files of one rank."""
        return JobPaths(self.folder, self.job_id, task)

    def process(self) -> psutil.Process | None:
        """The local job's controller, if it still lives."""
        return living(int(self.job_id), self.process_started)

    def outcomes(self) -> list[tuple[str, Any]]:
        """("success", value) or ("error", trace) of every rank that has left one."""
        check_private(Path(self.folder))
        return [_load(path) for path in self._result_pickles() if path.exists()]

    def forget_outcomes(self) -> None:
        """Remove what ranks left: the job runs again."""
        for path in self._result_pickles():
            path.unlink(missing_ok=True)

    def _result_pickles(self) -> list[Path]:
        return [self.paths(task).result_pickle for task in range(self.num_tasks)]


def _load(path: Path) -> tuple[str, Any]:
    try:
        return pickle_load(path)
    except Exception as error:  # cut short, or of an earlier version of this code
        return "error", f"{path} can't be read ({error})"


def states(submissions: Sequence[Submission]) -> list[slurm.JobState]:
    """What the scheduler, or the process table, says of each job now."""
    if submissions and submissions[0].cluster == "slurm":
        found = slurm.states(submission.job_id for submission in submissions)
        return [found[submission.job_id] for submission in submissions]
    lives = [submission.cluster == "local" and submission.process() is not None for submission in submissions]
    return [slurm.JobState("RUNNING" if alive else "UNKNOWN", "None") for alive in lives]


def cancel(submissions: Sequence[Submission]) -> bool:
    """End jobs and all their processes; returns whether SLURM could be told of its own."""
    controllers = [submission.process() for submission in submissions if submission.cluster == "local"]
    end(controller for controller in controllers if controller is not None)
    return slurm.cancel([submission.job_id for submission in submissions if submission.cluster == "slurm"])


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
    make_private(folder)  # what is unpickled lies there
    if params.cluster == "debug":
        cancel_remembered(folder, show)
        return [_executor(stage, name, folder, params).submit(job).results() for job in jobs]
    submissions = _remembered(folder / "job.json")
    stop = _stopping(submissions, folder, params.cluster)
    previous = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        let_end(submissions, states, show)
        if any(state.is_alive for state in states(submissions)):
            show(f"re-attaching to job {_numbers(submissions)}, which is still running")
        elif submissions and all(_succeeded(submission, accept) for submission in submissions):
            show(f"job {_numbers(submissions)} ended while nobody watched; taking its results")
        else:
            _end_lost(folder, params.cluster, show)
            submissions[:] = _submit(jobs, stage, name, folder, params)
        return follow(submissions, states, cancel, show, gave_up)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def cancel_remembered(folder: Path, show: Callable[[str], None]) -> None:
    """Cancel the jobs that `folder` remembers, if they still live: this start does not follow them."""
    submissions = _remembered(folder / "job.json")
    if any(state.is_alive for state in states(submissions)):
        show(f"cancelling job {_numbers(submissions)}, which still works with other params, inputs, workers or cluster")
        end_all(submissions, states, cancel)


def _numbers(submissions: Sequence[Submission]) -> str:
    """The jobs' numbers as people write them; an array's elements as one."""
    return ", ".join(dict.fromkeys(submission.job_id.partition("_")[0] for submission in submissions))


def _remembered(path: Path) -> list[Submission]:
    return [validate(Submission, about, where=str(path)) for about in read_json(path) or []]


def _succeeded(submission: Submission, accept: Callable[[list[Any]], bool]) -> bool:
    outcomes = submission.outcomes()
    whole = len(outcomes) == submission.num_tasks and all(kind == "success" for kind, _ in outcomes)
    return whole and accept([value for _, value in outcomes])


def _executor(
    stage: str, name: str, folder: Path, params: LaunchParams
) -> submitit.AutoExecutor | submitit.SlurmExecutor:
    if params.cluster == "slurm":
        return _slurm_executor(submitit.SlurmExecutor, stage, name, folder, params)
    executor = submitit.AutoExecutor(folder=folder, cluster=params.cluster)
    executor.update_parameters(**_asked(stage, name, params))
    return executor


def _asked(stage: str, name: str, params: LaunchParams) -> dict[str, Any]:
    """What a job needs, in submitit's words for any cluster."""
    resources = params.resources(stage)
    return {
        "name": name,
        "nodes": resources.nodes,
        "tasks_per_node": resources.tasks_per_node,
        "gpus_per_node": resources.gpus_per_node,
        "cpus_per_task": resources.cpus_per_task,
        "mem_gb": resources.memory_gb,
        "timeout_min": resources.timeout_min,
    }


def _slurm_executor(
    kind: type[submitit.SlurmExecutor], stage: str, name: str, folder: Path, params: LaunchParams
) -> submitit.SlurmExecutor:
    resources = params.resources(stage)
    slurm.check_folder(folder)
    try:
        executor = kind(folder, max_num_timeout=params.max_timeouts, python=resources.python)
    except RuntimeError as error:
        do = "run on a machine that has SLURM's commands, or set launch.cluster: local"
        raise InputError(f"launch.cluster is slurm, but there is no srun on this machine; {do}") from error
    executor.update_parameters(
        **executor._convert_parameters(_asked(stage, name, params)),
        partition=resources.partition,
        account=resources.account,
        constraint=resources.constraint,
        array_parallelism=resources.max_running,
        signal_delay_s=params.save_s,
        # srun since 22.05 does not ask for the cores of the job by itself
        srun_args=["--kill-on-bad-exit=1", f"--cpus-per-task={resources.cpus_per_task}"],
        setup=resources.setup,
        stderr_to_stdout=True,
        comment=_comment(folder.parents[1]),
        additional_parameters={"requeue": True, **resources.sbatch},  # else a cluster's default may forbid it
    )
    return executor


class _OnPaper(submitit.SlurmExecutor):
    """Writes sbatch's script where there is no SLURM."""

    @classmethod
    def affinity(cls) -> int:
        return 1


def sbatch_header(stage: str, params: LaunchParams) -> list[str]:
    """What sbatch would be asked for a job of `stage`, line by line; needs no SLURM."""
    attempt = Path("work", stage, "FINGERPRINT", "job", "attempts", "1")
    executor = _slurm_executor(_OnPaper, stage, stage, attempt, params)
    num_workers = params.resources(stage).workers
    if num_workers > 1:
        executor.parameters["map_count"] = num_workers
    return executor._make_submission_file_text(executor._submitit_command_str, "plan").strip().splitlines()


def _comment(folder: Path) -> str:
    """By what SLURM finds the jobs of a folder if their numbers were lost."""
    return f"dinov2 {folder.absolute()}"


def _end_lost(folder: Path, cluster: str, show: Callable[[str], None]) -> None:
    """End the jobs of a submitter that was killed before it could note their numbers, and what a dead one left."""
    if cluster == "local":
        end(running("submitit", folder / "attempts"))
    lost = slurm.told(_comment(folder)) if cluster == "slurm" else []
    if lost:
        show(f"waiting for the end of job {', '.join(lost)}, which an earlier start left")
    while lost != []:
        if lost is None or not slurm.cancel(lost):
            raise JobFailedError("SLURM's controller does not answer; start again when it does", "")
        time.sleep(POLL_S["slurm"])
        lost = slurm.told(_comment(folder))


def _submit(
    jobs: Sequence[Callable[[], Any]], stage: str, name: str, folder: Path, params: LaunchParams
) -> list[Submission]:
    attempts = [int(path.name) for path in (folder / "attempts").glob("*")]
    attempt = folder / "attempts" / str(max(attempts, default=0) + 1)  # of its own: job numbers are used again
    make_private(attempt.parent)
    make_private(attempt)
    try:
        executor = _executor(stage, name, attempt, params)
        submitted = [executor.submit(jobs[0])] if len(jobs) == 1 else executor.submit_array(list(jobs))
    except (FailedJobError, FailedSubmissionError, ValueError) as error:
        reason = str(error).strip().splitlines()[-1]
        if slurm.UNANSWERING.search(str(error)):
            raise JobFailedError(f"the job of {stage} could not be submitted: {reason}", str(error)) from error
        what = f"{params.cluster} refused the job of {stage}"
        raise InputError(f"{what}: {reason}; mend `launch:` in params.yaml") from error
    submissions = [
        Submission(
            cluster=params.cluster,
            job_id=str(job.job_id),
            folder=str(attempt),
            num_tasks=params.resources(stage).num_tasks,
            process_started=start_time(int(job.job_id)) if params.cluster == "local" else None,
        )
        for job in submitted
    ]
    write_json(folder / "job.json", [submission.model_dump() for submission in submissions])
    return submissions


def _stopping(submissions: list[Submission], folder: Path, cluster: str) -> Callable[[int, FrameType | None], NoReturn]:
    """A handler of signals that cancels what `submissions` holds by then, and what was just being submitted."""

    def stop(number: int, frame: FrameType | None) -> NoReturn:
        is_told = cancel(submissions)
        if cluster == "local":
            end(running("submitit", folder / "attempts"))
        lost = (slurm.told(_comment(folder)) or []) if cluster == "slurm" and is_told else []
        is_told = is_told and slurm.cancel(lost)
        jobs = _numbers(submissions) or ", ".join(lost)
        came = f"job {jobs} was cancelled" if is_told else f"SLURM does not answer: end job {jobs} by scancel"
        raise KeyboardInterrupt(f"stopped by signal {number}" + (f"; {came}" if jobs else ""))

    return stop


def export_rank() -> None:
    """Set RANK, WORLD_SIZE, MASTER_ADDR, ... for torch.distributed, where the job has several processes.

    A rank that runs for the second time forgets how the first ended.
    """
    environment = submitit.JobEnvironment()
    if environment.activated() and "SUBMITIT_FOLDER" in os.environ:  # a job of cluster debug has no files
        environment.paths.result_pickle.unlink(missing_ok=True)
    if environment.num_tasks > 1:
        submitit.helpers.TorchDistributedEnvironment().export(set_cuda_visible_devices=False, overwrite=True)


def job_number() -> str:
    """The number that the scheduler gave to the job this runs in."""
    return submitit.JobEnvironment().job_id


def resubmission(job: Callable[[], Any]) -> Any:
    """What submitit wants of a job that is to be queued again as it is."""
    return submitit.helpers.DelayedSubmission(job)
