"""The watchdog: silent while steps end, and an end with stacks where they do not."""

import subprocess
import sys
import time

from dinov2.train.watchdog import STALLED, Watchdog

HANGS = """
import logging, sys, threading
logging.basicConfig(stream=sys.stderr)
sys.path.insert(0, {path!r})
from dinov2.train.watchdog import Watchdog
def never_comes():
    threading.Event().wait(60)
with Watchdog(0.3) as watchdog:
    watchdog.beat(7, "data")
    never_comes()
"""


def test_stalled_process_tells_its_stacks_and_ends(repository: object) -> None:
    started = time.monotonic()
    ended = subprocess.run(
        [sys.executable, "-c", HANGS.format(path=str(repository))], capture_output=True, text=True, check=False
    )
    assert ended.returncode == STALLED
    assert "rank 0: nothing has happened for" in ended.stderr
    assert "after step 7, while waiting for data" in ended.stderr
    assert "in never_comes" in ended.stderr
    assert time.monotonic() - started < 30


def test_watchdog_lets_steps_pauses_and_the_end_pass() -> None:  # else this process ends
    with Watchdog(0.2) as watchdog:
        time.sleep(0.3)  # before the first beat
        for step in range(6):
            watchdog.beat(step, "the step")
            time.sleep(0.05)
        with watchdog.paused():
            time.sleep(0.4)
        time.sleep(0.05)
    time.sleep(0.3)


def test_watchdog_that_is_off_starts_no_thread() -> None:
    with Watchdog(None) as watchdog:
        watchdog.beat(0, "data")
        assert watchdog._thread is None
