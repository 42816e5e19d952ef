"""The life of a stage's command: good ends, mistakes, gates, kills, second starts. Its jobs are real processes."""

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from curation_outputs import write_outputs

from tasks.call import disk_full
from tasks.stage import _fail, _fullness

ROOT = Path(__file__).parents[2]
PAGE = '<html><body><img src="http://a.example/1.jpg"><img src="ftp://a.example/2.jpg"></body></html>'


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A project folder with two pages and the shipped params, tracking to a file of its own."""
    pages = tmp_path / "inputs/demo/crawl"
    pages.mkdir(parents=True)
    (pages / "a.html").write_text(PAGE)
    text = (ROOT / "params.yaml").read_text()
    # a server that refuses at once: these tests are not about tracking, and a stage must not need it
    (tmp_path / "params.yaml").write_text(text.replace("sqlite:///mlflow.db", "http://127.0.0.1:9"))
    return tmp_path


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}


COMMAND = [sys.executable, "-m", "tasks.crawl", "--crawl", "inputs/demo/crawl", "--out", "data/crawl"]


def crawl(folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        COMMAND, cwd=folder, env=environment(), capture_output=True, text=True, check=False, timeout=60
    )


def dedup(folder: Path) -> dict[str, bytes]:
    """Outputs of dedup, by its command."""
    command = ["--filter", "data/filter", "--embed", "data/embed", "--out", "data/again"]
    done = subprocess.run(
        [sys.executable, "-m", "tasks.dedup", *command], cwd=folder, env=environment(), capture_output=True, text=True,
        check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    outputs = {path.name: path.read_bytes() for path in (folder / "data/again").iterdir()}
    shutil.rmtree(folder / "work/dedup")
    return outputs


def edit(folder: Path, old: str, new: str) -> None:
    path = folder / "params.yaml"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def failure(folder: Path) -> dict[str, str]:
    return json.loads((folder / "work/crawl/failure.json").read_text())


def test_a_stage_publishes_its_output_with_a_record_that_adds_up(folder: Path) -> None:
    done = crawl(folder)
    assert done.returncode == 0, done.stderr
    record = json.loads((folder / "data/crawl/record.json").read_text())
    counts = record["counts"]
    assert counts["num_in"] == counts["num_kept"] + sum(counts["dropped"].values()) == 2
    assert record["stage"] == "crawl"
    assert (folder / "data/crawl/metrics.json").exists()
    assert not list(folder.glob("work/crawl/*/out"))
    assert "tracking server http://127.0.0.1:9 can't be reached (Connection refused)" in done.stdout
    mark = json.loads(next(folder.glob("work/crawl/*/tracking.json")).read_text())
    assert mark["status"] == "FINISHED"
    assert mark["metrics"]["kept_share"] == counts["num_kept"] / 2


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("crawl:\n  ", "crawl:\n  colour: red\n  ", "params.yaml: crawl.colour: is not a known key"),
        ("cluster: local ", "cluster: moon ", "params.yaml: launch.cluster: input should be 'local'"),
        ("  save_s: 90", "  # save_s: 90", "params.yaml: launch.save_s: is missing"),
        ("tracking:\n", "tracking: [\n", "params.yaml is not valid YAML"),
        ("uri: http://127.0.0.1:9", "uri: sqlight:///x", "tracking.uri is 'sqlight:///x'"),
        ("{nodes: 1,", "{nodes: 2,", "local refused the job of crawl: LocalExecutor can use only one node"),
        ("cluster: local ", "cluster: slurm ", "there is no squeue here; run where SLURM's commands are"),
    ],
)
def test_a_mistake_in_params_is_one_sentence_and_exit_code_2(
    folder: Path, monkeypatch: pytest.MonkeyPatch, old: str, new: str, told: str
) -> None:
    edit(folder, old, new)
    monkeypatch.setenv("PATH", str(folder))  # where no command of SLURM is
    done = crawl(folder)
    assert done.returncode == 2
    assert told in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert failure(folder)["kind"] == "mistake"


def test_a_missing_input_is_named(folder: Path) -> None:
    (folder / "inputs/demo/crawl/a.html").unlink()
    (folder / "inputs/demo/crawl").rmdir()
    done = crawl(folder)
    assert done.returncode == 2
    assert "--crawl inputs/demo/crawl does not exist" in done.stderr


def test_a_missed_gate_keeps_the_work_and_a_lower_gate_publishes_it(folder: Path) -> None:
    (folder / "inputs/demo/crawl/b.html").write_text(PAGE.replace("1.jpg", "3.jpg"))
    text = (folder / "params.yaml").read_text()
    text = re.sub(r"(?m)^gates:.*\n(?:  .*\n)*", "gates: {crawl: {kept_share: 0.99}}\n", text)
    (folder / "params.yaml").write_text(text)
    missed = crawl(folder)
    assert missed.returncode == 3
    assert "kept_share" in missed.stderr.splitlines()[-1]
    assert failure(folder)["kind"] == "gate"
    assert not (folder / "data/crawl").exists()
    jobs = list(folder.glob("work/crawl/*/job/attempts/*"))
    edit(folder, "kept_share: 0.99", "kept_share: 0.01")
    assert crawl(folder).returncode == 0
    assert (folder / "data/crawl/record.json").exists()
    assert list(folder.glob("work/crawl/*/job/attempts/*")) == jobs, "the job ran again"


def test_the_same_stage_twice_at_once_is_refused(folder: Path) -> None:
    first = subprocess.Popen(COMMAND, cwd=folder, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    lock = folder / "work/crawl/lock"
    while not (lock.exists() and lock.read_text()):
        assert first.poll() is None
        time.sleep(0.02)
    second = crawl(folder)
    first.communicate(timeout=60)
    assert first.returncode == 0
    assert second.returncode == 2
    assert f"crawl is already being run by process {first.pid}" in second.stderr


def crawl_where(folder: Path, failing: str) -> subprocess.CompletedProcess[str]:
    """The command, where the operating system does not do something."""
    run = "from tasks import crawl; sys.exit(crawl.main(crawl.run))"
    command = [sys.executable, "-c", f"import errno, fcntl, pathlib, sys\n{failing}\n{run}", *COMMAND[3:]]
    return subprocess.run(
        command, cwd=folder, env=environment(), capture_output=True, text=True, check=False, timeout=60
    )


def test_where_files_cannot_be_locked_the_stage_says_so_and_runs(folder: Path) -> None:
    failing = "def flock(*_): raise OSError(errno.ENOSYS, 'Function not implemented')\nfcntl.flock = flock"
    done = crawl_where(folder, failing)
    assert done.returncode == 0, done.stderr
    assert "work/crawl/lock can't be locked (Function not implemented)" in done.stdout


def test_a_folder_of_somebody_else_is_told_in_a_sentence(folder: Path) -> None:
    failing = (
        "before = pathlib.Path.open\n"
        "def open(path, *rest, **more):\n"
        "    if path.name == 'lock': raise PermissionError(errno.EACCES, 'Permission denied', str(path))\n"
        "    return before(path, *rest, **more)\n"
        "pathlib.Path.open = open"
    )
    done = crawl_where(folder, failing)
    assert done.returncode == 2, done.stderr
    assert "you may not use work/crawl/lock (Permission denied)" in done.stderr.splitlines()[-1]
    assert failure(folder)["kind"] == "mistake"


def test_a_job_of_slurm_that_cannot_be_asked_for_is_not_run_again_elsewhere(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = subprocess.Popen(COMMAND, cwd=folder, env=environment(), stdout=subprocess.DEVNULL)
    while not (jobs := list(folder.glob("work/crawl/*/job/job.json"))):
        assert first.poll() is None
        time.sleep(0.01)
    first.kill()
    first.wait()
    (about,) = json.loads(jobs[0].read_text())
    jobs[0].write_text(json.dumps([about | {"cluster": "slurm", "job_id": "7"}]))
    monkeypatch.setenv("PATH", str(folder))
    done = crawl(folder)
    assert done.returncode == 2, done.stderr
    assert "there is no squeue here" in done.stderr.splitlines()[-1]


def test_after_kill_9_of_the_submitter_its_job_is_taken_up_not_repeated(folder: Path) -> None:
    first = subprocess.Popen(COMMAND, cwd=folder, env=environment(), stdout=subprocess.DEVNULL, start_new_session=True)
    while not (jobs := list(folder.glob("work/crawl/*/job/job.json"))):
        assert first.poll() is None
        time.sleep(0.01)
    first.send_signal(signal.SIGKILL)
    first.wait()
    done = crawl(folder)
    assert done.returncode == 0, done.stderr
    assert "re-attaching to job" in done.stdout or "ended while nobody watched" in done.stdout
    assert len(list(jobs[0].parent.glob("attempts/*"))) == 1


def test_an_output_that_was_published_and_lost_is_made_again(folder: Path) -> None:
    assert crawl(folder).returncode == 0
    table = folder / "data/crawl/records.parquet"
    before = table.read_bytes()
    shutil.rmtree(folder / "data")
    assert crawl(folder).returncode == 0
    assert table.read_bytes() == before


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("max_page_mb: 10.0", "max_page_mb: 9.0"),
        ("timeout_min: 60, workers: 1,", "timeout_min: 60, workers: 2,"),
        ("cluster: local ", "cluster: debug "),
    ],
)
def test_a_living_job_of_other_params_or_workers_is_cancelled(folder: Path, old: str, new: str) -> None:
    first = subprocess.Popen(COMMAND, cwd=folder, env=environment(), stdout=subprocess.DEVNULL)
    while not (jobs := list(folder.glob("work/crawl/*/job/job.json"))):
        assert first.poll() is None
        time.sleep(0.01)
    first.kill()
    first.wait()
    controller = psutil.Process(int(json.loads(jobs[0].read_text())[0]["job_id"]))
    controller.suspend()  # so that it surely still lives
    edit(folder, old, new)
    done = crawl(folder)
    assert done.returncode == 0, done.stderr
    assert "which still works with other params, inputs, workers or cluster" in done.stdout
    assert not controller.is_running() or controller.status() == psutil.STATUS_ZOMBIE


def test_a_job_that_a_killed_submitter_could_not_note_is_ended_before_another_begins(folder: Path) -> None:
    first = subprocess.Popen(COMMAND, cwd=folder, env=environment(), stdout=subprocess.DEVNULL)
    while not (jobs := list(folder.glob("work/crawl/*/job/job.json"))):
        assert first.poll() is None
        time.sleep(0.01)
    first.kill()
    first.wait()
    controller = psutil.Process(int(json.loads(jobs[0].read_text())[0]["job_id"]))
    controller.suspend()  # so that it surely still lives
    jobs[0].unlink()
    done = crawl(folder)
    assert done.returncode == 0, done.stderr
    assert not controller.is_running() or controller.status() == psutil.STATUS_ZOMBIE


def test_a_login_in_the_words_of_a_library_goes_no_further(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sentence = "403 for https://me:secret1@a.example/x?X-Amz-Signature=secret2"
    assert _fail(tmp_path / "failure.json", "crawl", "crash", sentence, 1) == 1
    said = capsys.readouterr().err + (tmp_path / "failure.json").read_text()
    assert "403 for https://...@a.example" in said
    assert "secret" not in said


def test_a_quota_that_is_used_up_is_seen_by_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert _fullness(tmp_path) is None

    def fsync(_: int) -> None:
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    monkeypatch.setattr("os.fsync", fsync)
    full = _fullness(tmp_path)
    assert full is not None
    assert "is full (Disk quota exceeded); free space" in disk_full(full, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_killed_job_is_told_and_a_second_start_submits_anew(folder: Path) -> None:
    first = subprocess.Popen(
        COMMAND, cwd=folder, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    while not (jobs := list(folder.glob("work/crawl/*/job/job.json"))):
        assert first.poll() is None
        time.sleep(0.01)
    controller = psutil.Process(int(json.loads(jobs[0].read_text())[0]["job_id"]))
    for process in [*controller.children(recursive=True), controller]:
        process.kill()
    _, errors = first.communicate(timeout=60)
    assert first.returncode == 1
    assert "ended without a result" in errors.splitlines()[-1]
    assert failure(folder)["kind"] == "crash"
    assert crawl(folder).returncode == 0


def test_phases_that_need_each_other_give_the_same_with_one_worker_and_with_two(folder: Path) -> None:
    write_outputs(folder)
    edit(folder, "  min_cosine: 0.82 ", "  min_cosine: 0.998 ")  # 3 degrees and less
    edit(folder, "min_cosine: 0.8}", "min_cosine: 0.9998}")  # 1 degree
    one = dedup(folder)
    assert json.loads(one["record.json"])["counts"]["dropped"] == {"copy": 4, "evaluation_copy:held_out": 1}
    edit(folder, "timeout_min: 60, workers: 1,", "timeout_min: 60, workers: 2,")
    assert dedup(folder) == one
