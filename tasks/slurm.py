"""What SLURM says of jobs, by its own commands: their state, why they wait, why they ended.

`sacct` is not asked: many clusters have no accounting, it lags behind, and it calls a job ended that was queued again.
"""

import re
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from dinov2.params import InputError

ACTIVE = {
    "PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "REQUEUED", "REQUEUE_HOLD", "RESIZING",
    "REQUEUE_FED", "SIGNALING", "STAGE_OUT", "SPECIAL_EXIT", "RESV_DEL_HOLD",
}  # fmt: skip
WAITING = {"PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT", "RESV_DEL_HOLD"}
HOPELESS = re.compile(  # reasons that only another request, or an administrator, can change
    r"PartitionNodeLimit|PartitionTimeLimit|PartitionConfig|DependencyNeverSatisfied|Invalid(Account|QOS)"
    r"|(QOS|Assoc)Max\w*PerJob\w*|AccountNotAllowed|QOSNotAllowed|BadConstraints|JobHeld\w+"
    r"|launch[ _]failed[ _]requeued[ _]held"
)
UNANSWERING = re.compile(r"Unable to contact|[Tt]imed out|Connection refused|Zero Bytes|[Tt]ry again")
PATIENCE_S = 60.0  # for an answer of the controller


class JobState(NamedTuple):
    """A job as squeue shows it."""

    state: str
    reason: str
    """Why it waits; `None` if it does not."""

    @property
    def is_alive(self) -> bool:
        """Whether the job waits or runs."""
        return self.state in ACTIVE

    @property
    def is_waiting(self) -> bool:
        """Whether it does not run yet, or not any more: it was queued again."""
        return self.state in WAITING

    @property
    def is_hopeless(self) -> bool:
        """Whether it will wait for ever as it is."""
        return self.state == "PENDING" and HOPELESS.fullmatch(self.reason) is not None


UNKNOWN = JobState("UNKNOWN", "None")
UNANSWERED = JobState("RUNNING", "no answer")  # the controller does not answer: not a sign that a job ended


def states(job_ids: Iterable[str]) -> dict[str, JobState]:
    """The state of each job, elements of arrays too (`12_3`), by one question; `UNKNOWN` for one long gone."""
    asked = list(job_ids)
    numbers = ",".join(sorted({job_id.partition("_")[0] for job_id in asked}))
    command = ["squeue", "--noheader", "--states=all", "--array", f"--jobs={numbers}", "--format=%i|%T|%r"]
    answer = _ask(command)
    if answer is None or (answer.returncode != 0 and "Invalid job id" not in answer.stderr):
        return dict.fromkeys(asked, UNANSWERED)
    found = {line.split("|")[0]: JobState(*line.split("|")[1:3]) for line in answer.stdout.splitlines() if "|" in line}
    return {job_id: found.get(job_id, UNKNOWN) for job_id in asked}


def cancel(job_ids: Sequence[str]) -> bool:
    """End jobs, whatever they do; returns whether the controller could be told."""
    answer = _ask(["scancel", *job_ids]) if job_ids else None
    return not job_ids or (answer is not None and UNANSWERING.search(answer.stderr) is None)


def release(job_id: str) -> None:
    """Let a job that SLURM holds back wait for nodes again."""
    _ask(["scontrol", "release", job_id])


def told(comment: str) -> list[str] | None:
    """Numbers of our jobs that wait or run and bear the comment; None if the controller does not answer."""
    answer = _ask(["squeue", "--noheader", "--me", "--format=%A|%k"])
    if answer is None or answer.returncode != 0:
        return None
    lines = answer.stdout.splitlines()
    return sorted({line.partition("|")[0] for line in lines if line.partition("|")[2] == comment})


def check_folder(folder: Path) -> None:
    """Raise InputError where sbatch would not take the folder's path as it is."""
    path = str(folder.absolute())
    if odd := [character for character in "%\\\n\r" if character in path]:
        raise InputError(f"sbatch would read {odd[0]!r} in {path!r} as something else; move the repository elsewhere")


class Ending(NamedTuple):
    """How a job that left no result came to its end."""

    state: str
    sentence: str
    """Without the job's number, e.g. `was cancelled`."""


def ending(job_id: str) -> Ending:
    """Why a job ended, as the controller remembers it."""
    answer = _ask(["scontrol", "show", "job", "--oneliner", job_id])
    about = dict(re.findall(r"(\w+)=(\S+)", answer.stdout)) if answer is not None and answer.returncode == 0 else {}
    state, nodes = about.get("JobState", "UNKNOWN"), about.get("NodeList", "(null)")
    where = "" if nodes == "(null)" else f" on {nodes}"
    code, _, number = about.get("ExitCode", "0:0").partition(":")
    too_long = "raise its timeout_min, or launch.save_s if it was saving"
    sentences = {
        "TIMEOUT": f"reached its time limit of {about.get('TimeLimit')} and left no result; {too_long}",
        "OUT_OF_MEMORY": f"used more memory than it was given{where}; raise its memory_gb",
        "CANCELLED": "was cancelled",
        "NODE_FAIL": f"lost its node{where}",
        "BOOT_FAIL": f"lost its node{where}, which did not boot",
        "PREEMPTED": "was preempted and not queued again",
        "DEADLINE": "did not end before its deadline",
        "UNKNOWN": "ended without a result, and SLURM no longer knows why",
        "COMPLETED": f"ended{where} without a result",
    }
    by = f"killed by signal {number}" if number not in ("", "0") else f"exit code {code}"
    return Ending(state, sentences.get(state, f"ended without a result ({state}, {by}{where})"))


def _ask(command: list[str]) -> subprocess.CompletedProcess[str] | None:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE_S)
    except subprocess.TimeoutExpired:
        return None
    except OSError as error:
        do = "run where SLURM's commands are; launch.cluster: local needs none, once no job.json below work/ names one"
        raise InputError(f"SLURM can't be asked for its jobs, as there is no {command[0]} here; {do}") from error
