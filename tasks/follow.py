"""Waiting for jobs: their logs are passed on, their results awaited, and what ended without any is told."""

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from dinov2.params import InputError
from tasks import slurm
from tasks.log_tail import LogTail
from tasks.processes import num_living_children

if TYPE_CHECKING:
    from tasks.launch import Submission

POLL_S = {"local": 0.1, "slurm": 1.0}
GIVEN_UP_GRACE_S = 5.0  # in which the other ranks may come to the same end by themselves
FAILED_GRACE_S = {"local": 0.0, "slurm": 60.0}  # in which SLURM ends a job by itself, or queues it again
RESULT_GRACE_S = {"local": 1.0, "slurm": 15.0}  # a result may reach a shared file system after its job ended
LOST_GRACE_S = 15.0  # between the ends of ranks that save together and are queued again
RELEASE_GRACE_S = 5.0  # until squeue shows that a job is not held any more
END_GRACE_S = 10.0  # between results and the end of the processes that wrote them
CAUSES = {"CANCELLED", "OUT_OF_MEMORY"}  # of one rank, perhaps; what others say is then only that they lost it
MISTAKES = {"TIMEOUT", "OUT_OF_MEMORY", "DEADLINE"}  # trying again without another request can't help


class JobFailedError(Exception):
    """A job that ended without results; `trace` is what it left, for the log."""

    def __init__(self, sentence: str, trace: str, *, is_final: bool = False) -> None:
        super().__init__(sentence)
        self.trace = trace
        self.is_final = is_final
        """Whether somebody wanted it so: it is not to be tried again."""


def follow(
    submissions: Sequence["Submission"],
    ask: Callable[[Sequence["Submission"]], list[slurm.JobState]],
    cancel: Callable[[Sequence["Submission"]], object],
    show: Callable[[str], None],
    gave_up: Callable[[Any], bool],
) -> list[list[Any]]:
    """Results of all jobs, in their order; the failure of one is told when the others have ended too.

    `ask` says how the jobs are, `cancel` ends some.
    """
    mark = "[{}] " if len(submissions) > 1 else ""
    followed = [
        _Followed(submission, mark.format(number), cancel, show, gave_up)
        for number, submission in enumerate(submissions)
    ]
    is_silent = False
    while True:
        open_jobs = [job for job in followed if not job.is_over()]
        found = ask([job.submission for job in open_jobs])
        if slurm.UNANSWERED in found and not is_silent:
            show("SLURM's controller does not answer; waiting for it")
        is_silent = slurm.UNANSWERED in found
        for job, state in zip(open_jobs, found, strict=True):
            job.look(state)
        if all(job.is_over() for job in followed):
            break
        time.sleep(POLL_S[submissions[0].cluster])
    _see_off(submissions, ask, cancel)
    for job in followed:
        if job.failure is not None:
            raise job.failure
    return [[value for _, value in job.outcomes] for job in followed]


def _see_off(
    submissions: Sequence["Submission"],
    ask: Callable[[Sequence["Submission"]], list[slurm.JobState]],
    cancel: Callable[[Sequence["Submission"]], object],
) -> None:
    """Return when no job runs any more: one that was queued again when it had its results would do its work twice."""
    deadline = time.monotonic() + END_GRACE_S
    while submissions[0].cluster == "slurm":
        alive = [job for job, state in zip(submissions, ask(submissions), strict=True) if state.is_alive]
        if not alive:
            return
        if time.monotonic() > deadline:
            cancel(alive)
            return
        time.sleep(POLL_S["slurm"])


def end_all(
    submissions: Sequence["Submission"],
    ask: Callable[[Sequence["Submission"]], list[slurm.JobState]],
    cancel: Callable[[Sequence["Submission"]], object],
) -> None:
    """Cancel jobs; returns when none runs any more, as they work on until SLURM's KillWait is over."""
    while alive := [job for job, state in zip(submissions, ask(submissions), strict=True) if state.is_alive]:
        cancel(alive)
        time.sleep(POLL_S[alive[0].cluster])


def let_end(
    submissions: Sequence["Submission"],
    ask: Callable[[Sequence["Submission"]], list[slurm.JobState]],
    show: Callable[[str], None],
) -> None:
    """Return when no job is just ending without results: cancelled a moment ago, it counts as alive for a while."""
    is_told = False
    while dying := [
        job.job_id
        for job, state in zip(submissions, ask(submissions), strict=True)
        if state.state == "COMPLETING" and len(job.outcomes()) < job.num_tasks
    ]:
        if not is_told:
            show(f"job {', '.join(dying)} is just ending; waiting for that")
        is_told = True
        time.sleep(POLL_S["slurm"])


class _Followed:
    """A job that is watched: its log is passed on, its results are awaited."""

    def __init__(
        self,
        submission: "Submission",
        mark: str,
        cancel: Callable[[Sequence["Submission"]], object],
        show: Callable[[str], None],
        gave_up: Callable[[Any], bool],
    ) -> None:
        self.submission = submission
        self.outcomes: list[tuple[str, Any]] = []
        self.failure: JobFailedError | InputError | None = None
        self._show = lambda line: show(mark + line)
        self._log = LogTail(submission.paths(0).stdout, self._show)
        self._cancel = lambda: cancel([submission])
        self._gave_up = gave_up
        self._since: dict[str, float] = {}
        self._has_run = False
        self._is_given_up = False
        self._reason = ""
        self._released_at: float | None = None

    def is_over(self) -> bool:
        """Whether it has its results or will never have them."""
        whole = len(self.outcomes) == self.submission.num_tasks and not self._errors()
        return self.failure is not None or whole or self._is_given_up

    def look(self, state: slurm.JobState) -> None:
        """See what it has come to; `state` is the scheduler's word."""
        job = self.submission
        self._log.read()
        if state.is_waiting:
            self._wait(state)
            return
        self._has_run = True
        self.outcomes = job.outcomes()
        errors = self._errors()
        if errors and (not state.is_alive or self._lasts("failed", FAILED_GRACE_S[job.cluster])):
            self._cancel()  # the other ranks would wait for the failed one for ever
            if state.state in CAUSES:
                self._fail_without_result()
            else:
                self._fail_of(errors[0])
        elif errors:
            self._start("failed")
        elif any(self._gave_up(value) for _, value in self.outcomes):
            self._start("given up")
            if len(self.outcomes) < job.num_tasks and self._lasts("given up", GIVEN_UP_GRACE_S):
                self._cancel()
                self._is_given_up = True
        elif len(self.outcomes) < job.num_tasks and not state.is_alive:
            self._start("vanished")
            if self._lasts("vanished", RESULT_GRACE_S[job.cluster]):
                self._fail_without_result()
        elif self._has_lost_rank():
            self._start("lost")
            if self._lasts("lost", LOST_GRACE_S):
                self._cancel()
                self._fail_without_result()
        else:
            self._since = {}
        self._log.read()

    def _has_lost_rank(self) -> bool:
        """Whether a rank ended without a word, for which the others may wait for ever; on SLURM srun ends them."""
        job = self.submission
        controller = job.process() if job.cluster == "local" and job.num_tasks > 1 else None
        num_living = num_living_children(controller) if controller else 0
        return 0 < num_living < job.num_tasks - len(self.outcomes)

    def _wait(self, state: slurm.JobState) -> None:
        """It is queued: for the first time, or again, when what its ranks left before is of no use."""
        if self._has_run:
            self._show(f"job {self.submission.job_id} was queued again; it goes on from what it has saved")
            self.submission.forget_outcomes()
        elif state.reason not in ("None", self._reason):
            self._show(f"job {self.submission.job_id} waits: {state.reason}")
        self._reason, self._has_run, self._since, self.outcomes = state.reason, False, {}, []
        if state.is_hopeless and not self._is_released(state.reason):
            self._cancel()
            number, reason = self.submission.job_id, state.reason
            if reason.startswith("launch"):
                self.failure = JobFailedError(f"job {number} could not be begun by its node ({reason})", "")
            elif reason.startswith("JobHeld"):
                self.failure = InputError(f"job {number} was held by a person ({reason}); ask why, then start it again")
            else:
                self.failure = InputError(f"job {number} would wait for ever ({reason}); mend `launch:` in params.yaml")

    def _is_released(self, reason: str) -> bool:
        """Whether a job that its node could not begin waits for nodes again: it is given another try, once.

        A node has still the job's last start if the controller lost its memory of it.
        """
        if reason.startswith("launch") and self._released_at is None:
            self._show(f"job {self.submission.job_id} could not be begun by its node ({reason}); it is let go once")
            slurm.release(self.submission.job_id)
            self._released_at = time.monotonic()
        return self._released_at is not None and time.monotonic() - self._released_at < RELEASE_GRACE_S

    def _errors(self) -> list[str]:
        return [value for kind, value in self.outcomes if kind == "error"]

    def _start(self, what: str) -> None:
        self._since.setdefault(what, time.monotonic())

    def _lasts(self, what: str, grace_s: float) -> bool:
        """Whether it has been so for `grace_s`."""
        return what in self._since and time.monotonic() - self._since[what] > grace_s

    def _fail_of(self, trace: str) -> None:
        job, last = self.submission, trace.strip().splitlines()[-1]
        if "timed-out too many times" in last:
            do = "raise its timeout_min or launch.max_timeouts"
            self.failure = InputError(f"job {job.job_id} reached its time limit once more than it may; {do}")
        else:
            self.failure = JobFailedError(f"job {job.job_id} failed: {last}; its log is {self._log.path}", trace)

    def _fail_without_result(self) -> None:
        """As SLURM says that it ended."""
        job, log = self.submission, self._log.path
        end = slurm.ending(job.job_id) if job.cluster == "slurm" else None
        what = end.sentence if end else "ended without a result (killed, or out of memory?)"
        state = end.state if end else "UNKNOWN"
        sentence = f"job {job.job_id} {what}; its log is {log}"
        if state == "CANCELLED":
            self.failure = JobFailedError(sentence, self._log.last(), is_final=True)
        elif state in MISTAKES:
            self.failure = InputError(sentence)
        elif job.cluster == "slurm" and state != "NODE_FAIL" and not log.exists():
            see = f"it left no log; do the nodes see {log.parent}? The repository must lie on a file system they share"
            self.failure = InputError(f"job {job.job_id} {what}: {see}")
        else:
            self.failure = JobFailedError(sentence, self._log.last())
