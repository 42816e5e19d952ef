"""Processes are known again by number and start, whatever the clock was set to, and ended with all of theirs."""

import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tasks.processes import end, living, running, start_time

WAIT = "import subprocess; child = subprocess.Popen(['sleep', '60']); print('up', flush=True); child.wait()"
PARENT = [sys.executable, "-c", WAIT]
SLEEP = [sys.executable, "-c", "import time; time.sleep(60)"]


def test_a_clock_that_is_set_does_not_make_another_process_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    with subprocess.Popen(SLEEP) as process:
        started = start_time(process.pid)
        booted = psutil.boot_time()
        monkeypatch.setattr("psutil._pslinux.boot_time", lambda: booted + 3600)  # what the kernel says then
        assert living(process.pid, started) is not None
        assert living(process.pid, started + 1) is None
        process.kill()


def test_one_that_ended_and_that_nobody_asked_for_does_not_live() -> None:
    with subprocess.Popen(["true"]) as process:
        started = start_time(process.pid)
        while psutil.Process(process.pid).status() != psutil.STATUS_ZOMBIE:
            pass
        assert living(process.pid, started) is None
    assert living(process.pid, started) is None


def test_what_works_below_a_folder_is_found_and_ended_with_its_children(tmp_path: Path) -> None:
    mine, other = tmp_path / "attempts", tmp_path / "attempts2"
    with (
        subprocess.Popen([*PARENT, "package.module", f"{mine}/1"], stdout=subprocess.PIPE) as found,
        subprocess.Popen([*SLEEP, "package.module", f"{other}/1"]) as left,
        subprocess.Popen([*SLEEP, f"{mine}/1"]) as reader,
    ):
        assert found.stdout is not None
        found.stdout.readline()
        family = [psutil.Process(found.pid), *psutil.Process(found.pid).children()]
        assert running("package", mine) == family[:1]
        end(running("package", mine))
        _, alive = psutil.wait_procs(family, timeout=5)
        assert len(family) == 2
        assert not alive
        assert left.poll() is None
        assert reader.poll() is None
        left.kill()
        reader.kill()
