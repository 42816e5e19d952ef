"""What SLURM's commands say is read right; the commands are stand-ins here, tests/cluster asks real ones."""

import pickle
from pathlib import Path

import pytest

from dinov2.params import InputError, validate
from dinov2.trusted import make_private
from tasks import slurm
from tasks.follow import JobFailedError, follow
from tasks.launch import Submission, sbatch_header
from tasks.resources import LaunchParams

DEFAULT = {
    "nodes": 1, "gpus_per_node": 0, "cpus_per_task": 1, "memory_gb": 1, "timeout_min": 60, "workers": 1,
    "max_running": 2, "partition": "main", "account": None, "constraint": None, "sbatch": {}, "setup": [],
    "python": None,
}  # fmt: skip


@pytest.fixture
def answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder: what is written into it as `squeue` or `scontrol` is what that command does."""
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    return tmp_path


def command(folder: Path, name: str, script: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def test_all_jobs_are_asked_for_at_once(answers: Path) -> None:
    said = "7|RUNNING|None\\n8_0|COMPLETED|None\\n8_1|PENDING|Resources\\n8_2|NODE_FAIL|None\\n"
    command(answers, "squeue", f'echo "$@" >> {answers}/asked; printf "{said}"')
    found = slurm.states(["7", "8_0", "8_1", "8_2", "9"])
    assert found["7"].is_alive
    assert not found["7"].is_waiting
    assert not found["8_0"].is_alive
    assert found["8_1"].is_waiting
    assert not found["8_1"].is_hopeless
    assert not found["8_2"].is_alive
    assert not found["9"].is_alive
    (asked,) = (answers / "asked").read_text().splitlines()
    assert "--jobs=7,8,9" in asked


def test_a_controller_that_does_not_answer_has_not_ended_a_job(answers: Path) -> None:
    command(answers, "squeue", "echo 'slurm_load_jobs error: Unable to contact slurm controller' >&2; exit 1")
    assert slurm.states(["7"])["7"].is_alive
    command(answers, "squeue", "echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1")
    assert not slurm.states(["7"])["7"].is_alive


def test_what_could_not_be_cancelled_or_looked_for_is_known(answers: Path) -> None:
    command(answers, "scancel", "echo 'scancel: error: Invalid job id specified' >&2; exit 1")
    assert slurm.cancel(["7"])
    for name in ("scancel", "squeue"):
        command(answers, name, "echo 'slurm_load_jobs error: Unable to contact slurm controller' >&2; exit 1")
    assert not slurm.cancel(["7"])
    assert slurm.told("dinov2 /a/b") is None


@pytest.mark.parametrize(
    "reason",
    [
        "DependencyNeverSatisfied", "PartitionTimeLimit", "QOSMaxGRESPerJob", "InvalidQOS",
        "launch failed requeued held",
    ],
)  # fmt: skip
def test_what_waits_for_ever_is_known_by_its_reason(reason: str) -> None:
    assert slurm.JobState("PENDING", reason).is_hopeless
    assert not slurm.JobState("PENDING", "Priority").is_hopeless
    assert not slurm.JobState("RUNNING", reason).is_hopeless


@pytest.mark.parametrize(
    ("about", "told"),
    [
        ("JobState=TIMEOUT TimeLimit=01:00:00 NodeList=n1 ExitCode=0:15", "time limit of 01:00:00"),
        ("JobState=OUT_OF_MEMORY NodeList=n1 ExitCode=0:125", "more memory than it was given on n1"),
        ("JobState=NODE_FAIL NodeList=n[1-2] ExitCode=0:0", "lost its node on n[1-2]"),
        ("JobState=FAILED NodeList=n1 ExitCode=0:9", "killed by signal 9 on n1"),
        ("JobState=FAILED NodeList=n1 ExitCode=3:0", "exit code 3 on n1"),
        ("JobState=CANCELLED NodeList=(null) ExitCode=0:0", "was cancelled"),
    ],
)
def test_why_a_job_ended_is_a_sentence(answers: Path, about: str, told: str) -> None:
    command(answers, "scontrol", f"echo 'JobId=7 {about}'")
    assert told in slurm.ending("7").sentence


@pytest.mark.parametrize(
    ("state", "error", "told"),
    [
        ("OUT_OF_MEMORY", InputError, "used more memory than it was given on n1; raise its memory_gb"),
        ("CANCELLED", JobFailedError, "job 7 was cancelled"),
        ("FAILED", JobFailedError, "job 7 failed: ProcessLostError: lost another one"),
    ],
)
def test_what_slurm_did_is_told_even_if_a_rank_says_that_it_lost_another(
    answers: Path, state: str, error: type[Exception], told: str
) -> None:
    command(answers, "scontrol", f"echo 'JobId=7 JobState={state} NodeList=n1 ExitCode=0:9'")
    job = Submission(cluster="slurm", job_id="7", folder=str(answers / "job"), num_tasks=2, process_started=None)
    make_private(answers / "job")
    job.paths(1).result_pickle.write_bytes(pickle.dumps(("error", "Traceback\nProcessLostError: lost another one")))
    with pytest.raises(error, match=told) as raised:
        follow([job], lambda _: [slurm.JobState(state, "None")], lambda _: None, [].append, lambda _: False)
    assert getattr(raised.value, "is_final", False) == (state == "CANCELLED")


def test_jobs_whose_numbers_were_lost_are_found_by_their_comment(answers: Path) -> None:
    command(answers, "squeue", "printf '7|dinov2 /a/b\\n8|dinov2 /a/b2\\n9|(null)\\n7|dinov2 /a/b\\n'")
    assert slurm.told("dinov2 /a/b") == ["7"]


def launch(**asked: object) -> LaunchParams:
    values = {"cluster": "slurm", "save_s": 90, "max_timeouts": 3, "default": {**DEFAULT, **asked}, "stages": {}}
    return validate(LaunchParams, values, where="launch")


def test_the_header_says_what_a_stage_asks_for_without_slurm(answers: Path) -> None:
    stages = {"pretrain": {"nodes": 4, "gpus_per_node": 8, "constraint": "a100|h100", "sbatch": {"qos": "high"}}}
    values = {"cluster": "slurm", "save_s": 90, "max_timeouts": 3, "default": DEFAULT, "stages": stages}
    params = validate(LaunchParams, values, where="launch")
    lines = sbatch_header("pretrain", params)
    wanted = {
        "#SBATCH --nodes=4", "#SBATCH --gpus-per-node=8", "#SBATCH --ntasks-per-node=8", "#SBATCH --qos=high",
        "#SBATCH --constraint='a100|h100'", "#SBATCH --partition=main", "#SBATCH --time=60",
        "#SBATCH --signal=USR2@90", "#SBATCH --requeue",
    }  # fmt: skip
    assert wanted <= set(lines)
    assert not any(line.startswith("#SBATCH --array") for line in lines)
    assert " --cpus-per-task=1 " in lines[-1]
    array = sbatch_header("filter", launch(workers=64, max_running=16))
    assert "#SBATCH --array=0-63%16" in array


@pytest.mark.parametrize("name", ["a%jb", "a\\b", "a\ntouch harmed\n"])
def test_a_path_that_sbatch_would_read_otherwise_is_refused(
    answers: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    (answers / name).mkdir()
    monkeypatch.chdir(answers / name)
    with pytest.raises(InputError, match="move the repository elsewhere"):
        sbatch_header("filter", launch())


def test_a_setup_line_and_another_python_stand_before_the_job(answers: Path) -> None:
    lines = sbatch_header("filter", launch(setup=["module load cuda"], python="apptainer exec x.sif python3"))
    assert "module load cuda" in lines
    assert " apptainer exec x.sif python3 -u -m submitit" in lines[-1]


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"partition": "a\n#SBATCH --uid=0"}, "launch.default.partition"),
        ({"sbatch": {"qos": "a\nrm"}}, "launch.default.sbatch"),
        ({"sbatch": {"QOS x": "a"}}, "launch.default.sbatch"),
        ({"sbatch": {"comment": "mine"}}, "sbatch names comment, by which the launcher itself"),
        ({"timeout_min": 1}, r"is not longer than save_s, 90 s, .* raise one or lower the other$"),
        ({"workers": 65}, "launch.default.workers"),
    ],
)
def test_resources_that_cannot_be_are_refused(asked: dict[str, object], told: str) -> None:
    with pytest.raises(InputError, match=told):
        launch(**asked)
