"""Waiting for jobs: their logs are passed on, their results awaited, and what ended without any is told."""

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from tasks.log_tail import LogTail

if TYPE_CHECKING:
    from tasks.launch import Submission

POLL_S = 0.1
GIVEN_UP_GRACE_S = 5.0  # in which the other ranks may come to the same end by themselves
RESULT_GRACE_S = 15.0  # a result may reach a shared file system after the scheduler calls its job ended


class JobFailedError(Exception):
    """A job that ended without results; `trace` is what it left, for the log."""

    def __init__(self, sentence: str, trace: str) -> None:
        super().__init__(sentence)
        self.trace = trace


def follow(
    submissions: Sequence["Submission"], show: Callable[[str], None], gave_up: Callable[[Any], bool]
) -> list[list[Any]]:
    """Results of all jobs, in their order; the failure of one is told when the others have ended too."""
    mark = "[{}] " if len(submissions) > 1 else ""
    followed = [
        _Followed(submission, mark.format(number), show, gave_up) for number, submission in enumerate(submissions)
    ]
    while [job for job in followed if not job.has_ended()]:
        time.sleep(POLL_S if submissions[0].cluster != "slurm" else 10 * POLL_S)
    for job in followed:
        if job.failure is not None:
            raise job.failure
    return [[value for _, value in job.outcomes] for job in followed]


class _Followed:
    """A job that is watched: its log is passed on, its results are awaited."""

    def __init__(
        self, submission: "Submission", mark: str, show: Callable[[str], None], gave_up: Callable[[Any], bool]
    ) -> None:
        self.submission = submission
        self.outcomes: list[tuple[str, Any]] = []
        self.failure: JobFailedError | None = None
        self._log = LogTail(submission.paths(0).stdout, lambda line: show(mark + line))
        self._gave_up = gave_up
        self._gave_up_at: float | None = None
        self._vanished_at: float | None = None

    def has_ended(self) -> bool:
        """Whether it has its results or will never have them; to be asked again and again."""
        job = self.submission
        if self._is_over():
            return True
        self._log.read()
        self.outcomes = job.outcomes()
        failed = [value for kind, value in self.outcomes if kind == "error"]
        if failed:
            job.cancel()  # the other ranks would wait for the failed one for ever
            last = failed[0].strip().splitlines()[-1]
            self._fail(f"job {job.job_id} failed: {last}; its log is {self._log.path}", failed[0])
        elif any(self._gave_up(value) for _, value in self.outcomes):
            self._gave_up_at = self._gave_up_at or time.monotonic()
            if len(self.outcomes) < job.num_tasks and self._is_given_up():
                job.cancel()
        elif len(self.outcomes) < job.num_tasks and not job.is_alive():
            self._vanished_at = self._vanished_at or time.monotonic()
            grace_s = RESULT_GRACE_S if job.cluster == "slurm" else 1.0
            if time.monotonic() - self._vanished_at > grace_s:
                sentence = f"job {job.job_id} ended without a result (killed, or out of memory?)"
                self._fail(f"{sentence}; its log is {self._log.path}", self._log.last())
        else:
            self._vanished_at = None
        self._log.read()
        return self._is_over()

    def _is_over(self) -> bool:
        return self.failure is not None or len(self.outcomes) == self.submission.num_tasks or self._is_given_up()

    def _is_given_up(self) -> bool:
        return self._gave_up_at is not None and time.monotonic() - self._gave_up_at > GIVEN_UP_GRACE_S

    def _fail(self, sentence: str, trace: str) -> None:
        self.failure = JobFailedError(sentence, trace)
