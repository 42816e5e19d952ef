"""How the flow's task runs a command, ends it, and tells a person's mistake from a crash."""

import json
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from dinov2.params import InputError
from flows.repro import BUSY, StageCrashError, StageMistakeError, _end, _failure, _run
from tasks.stage import _only_one


def fail(folder: Path, instance: str, kind: str) -> None:
    path = folder / "work" / instance / "failure.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"kind": kind, "sentence": "what happened"}))


@pytest.mark.parametrize(
    ("kind", "error"), [("mistake", StageMistakeError), ("gate", StageMistakeError), ("crash", StageCrashError)]
)
def test_the_kind_of_a_failure_decides_whether_it_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, error: type[Exception]
) -> None:
    monkeypatch.chdir(tmp_path)
    fail(tmp_path, "evaluate@random", kind)
    failure = _failure("evaluate", 1, ["dvc's last line"])
    assert type(failure) is error
    assert str(failure) == "evaluate@random: what happened"


def test_a_failure_without_a_word_of_the_stage_is_a_crash_with_dvcs_last_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    failure = _failure("dedup", 1, ["> python -m tasks.dedup", "ERROR: failed to reproduce"])
    assert isinstance(failure, StageCrashError)
    assert isinstance(_failure("dedup", 1, ["ERROR: dvc.yaml is wrong"]), StageMistakeError)
    assert "ERROR: failed to reproduce" in str(failure)
    killed = _failure("dedup", -9, [])
    assert isinstance(killed, StageCrashError)
    assert "signal 9" in str(killed)


def test_a_mistake_that_could_not_be_left_on_a_full_disk_is_known_by_the_exit_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ran, ended = "> python -m tasks.crawl", "ERROR: failed to reproduce 'crawl': failed to run: python, exited with"
    failure = _failure("crawl", 255, [ran, "crawl: the disk of work is full", f"{ended} 2"])
    assert type(failure) is StageMistakeError
    assert str(failure) == "crawl: the disk of work is full"
    assert type(_failure("crawl", 255, [ran, f"{ended} 1"])) is StageCrashError


def test_a_stage_that_an_orphan_still_runs_is_waited_for(tmp_path: Path) -> None:
    with _only_one(tmp_path / "crawl"), pytest.raises(InputError) as refused, _only_one(tmp_path / "crawl"):
        pass
    assert BUSY.search(str(refused.value))


def test_lines_are_passed_on_and_a_child_that_holds_the_pipe_does_not_hold_the_task() -> None:
    orphan = "import subprocess, sys; print('one'); subprocess.Popen(['sleep', '9'])"
    shown: list[str] = []
    started = time.monotonic()
    code, lines = _run([sys.executable, "-c", orphan + "; print('two'); sys.exit(3)"], shown.append)
    assert time.monotonic() - started < 8
    assert code == 3
    assert shown == lines == ["one", "two"]


def test_ending_a_command_leaves_its_children_time_to_end_well(tmp_path: Path) -> None:
    child = (
        "import signal, sys, time, pathlib\n"
        "def stop(*_):\n    time.sleep(1); pathlib.Path(sys.argv[1]).write_text('cancelled'); sys.exit()\n"
        "signal.signal(signal.SIGTERM, stop); print('up', flush=True); time.sleep(60)"
    )
    start = f"subprocess.Popen([sys.executable, '-c', {child!r}, sys.argv[1]])"
    parent = f"import subprocess, sys, time; {start}; time.sleep(60)"
    note = tmp_path / "note"
    command = [sys.executable, "-c", parent, str(note)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True, text=True)
    assert process.stdout is not None
    process.stdout.readline()
    _end(process)
    process.stdout.close()
    assert note.read_text() == "cancelled"


def test_ending_a_command_ends_all_of_its_session() -> None:
    parent = "import subprocess, sys, time; subprocess.Popen(['sleep', '60']); print('up', flush=True); time.sleep(60)"
    process = subprocess.Popen(
        [sys.executable, "-c", parent], stdout=subprocess.PIPE, start_new_session=True, text=True
    )
    assert process.stdout is not None
    process.stdout.readline()
    family = [psutil.Process(process.pid), *psutil.Process(process.pid).children()]
    assert len(family) == 2
    _end(process)
    process.stdout.close()
    _, alive = psutil.wait_procs(family, timeout=5)
    assert not alive, alive
