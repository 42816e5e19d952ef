"""Parts are each made once, whoever makes them; jobs run side by side are all followed to their ends."""

import functools
import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from tasks.fan_out import Phase, make_parts, missing_parts
from tasks.follow import JobFailedError
from tasks.launch import Submission, run_jobs
from tasks.resources import LaunchParams, Resources

# submitit forgets its local processes without waiting for them
pytestmark = pytest.mark.filterwarnings("ignore:subprocess .* is still running", "ignore:Exception ignored in")

DEFAULT: dict[str, Any] = {
    "nodes": 1, "gpus_per_node": 0, "cpus_per_task": 1, "memory_gb": 1, "timeout_min": 5, "workers": 2,
    "max_running": 2, "partition": None, "account": None, "constraint": None, "sbatch": {}, "setup": [], "python": None,
}  # fmt: skip
LAUNCH = LaunchParams(cluster="local", save_s=90, max_timeouts=1, stages={}, default=Resources(**DEFAULT))


def count(params: int) -> int:
    return params


def write_part(part: int, *, work: Path, text: str) -> None:
    with (work / "log").open("a") as log:
        log.write(f"{text}{part}\n")


def fail(part: int) -> None:
    assert part / 0


PHASE = Phase("letters", count, write_part)


def values(work: Path) -> dict[str, Any]:
    return {"params": 7, "work": work, "text": "part ", "never_asked": None}


def test_workers_share_the_parts_and_a_second_start_makes_only_what_is_missing(tmp_path: Path) -> None:
    make_parts(PHASE, values(tmp_path), first=1, of=3)
    assert missing_parts(PHASE, values(tmp_path)) == [0, 2, 3, 5, 6]
    for worker in range(2):
        make_parts(PHASE, values(tmp_path), first=worker, of=2)
    assert missing_parts(PHASE, values(tmp_path)) == []
    lines = (tmp_path / "log").read_text().splitlines()
    assert lines[:2] == ["part 1", "part 4"]
    assert sorted(lines) == [f"part {part}" for part in range(7)]


def test_shares_of_what_is_missing_are_even(tmp_path: Path) -> None:
    make_parts(PHASE, values(tmp_path), first=0, of=2)
    missing = missing_parts(PHASE, values(tmp_path))
    assert missing == [1, 3, 5]
    make_parts(PHASE, values(tmp_path), first=0, of=1, among=missing[1::2])
    assert missing_parts(PHASE, values(tmp_path)) == [1, 5]


def test_a_part_that_failed_is_not_marked(tmp_path: Path) -> None:
    broken = Phase("broken", count, fail)
    with pytest.raises(ZeroDivisionError):
        make_parts(broken, values(tmp_path), first=0, of=1)
    assert len(missing_parts(broken, values(tmp_path))) == 7


def run(folder: Path, jobs: list[Any], lines: list[str]) -> list[list[Any]]:
    return run_jobs(
        jobs, stage="filter", name="filter", folder=folder, accept=lambda _: True, params=LAUNCH, show=lines.append
    )


def shout(word: str) -> str:
    os.write(1, f"{word}\n".encode())
    return word.upper()


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def finish_late(path: Path) -> None:
    time.sleep(1)
    path.touch()


def test_jobs_side_by_side_return_in_order_with_their_logs(tmp_path: Path) -> None:
    lines: list[str] = []
    jobs = [functools.partial(shout, word) for word in ("one", "two")]
    assert run(tmp_path, jobs, lines) == [["ONE"], ["TWO"]]
    assert {"[0] one", "[1] two"} <= set(lines)
    assert run(tmp_path, jobs, lines) == [["ONE"], ["TWO"]]
    assert any("re-attaching" in line or "nobody watched" in line for line in lines)
    assert len(list((tmp_path / "attempts").iterdir())) == 1


def test_one_job_that_dies_lets_the_others_end_before_it_is_told(tmp_path: Path) -> None:
    done = tmp_path / "done"
    jobs = [die, functools.partial(finish_late, done)]
    with pytest.raises(JobFailedError, match="ended without a result"):
        run(tmp_path / "job", jobs, [])
    assert done.exists()


def give_up_or_wait() -> str:
    if os.environ["SUBMITIT_LOCAL_LOCALID"] == "0":
        return "mistake"
    time.sleep(600)
    return "late"


def die_or_wait() -> None:
    if os.environ["SUBMITIT_LOCAL_LOCALID"] == "0":
        die()
    time.sleep(600)


TWO = LAUNCH.model_copy(update={"default": LAUNCH.default.model_copy(update={"gpus_per_node": 2})})


def test_a_rank_that_died_ends_the_wait_of_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.follow.LOST_GRACE_S", 1.0)
    with pytest.raises(JobFailedError, match="ended without a result"):
        run_jobs(
            [die_or_wait], stage="filter", name="filter", folder=tmp_path, accept=lambda _: True, params=TWO,
            show=[].append,
        )  # fmt: skip
    (about,) = json.loads((tmp_path / "job.json").read_text())
    assert Submission(**about).process() is None


def test_a_rank_that_gave_up_ends_the_wait_of_the_others(tmp_path: Path) -> None:
    started = time.monotonic()
    results = run_jobs(
        [give_up_or_wait], stage="filter", name="filter", folder=tmp_path, accept=lambda _: True, params=TWO,
        show=[].append, gave_up=lambda value: value == "mistake",
    )  # fmt: skip
    assert results == [["mistake"]]
    assert time.monotonic() - started < 60
    (about,) = json.loads((tmp_path / "job.json").read_text())
    assert Submission(**about).process() is None
