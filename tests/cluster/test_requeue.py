"""A training that is taken off its nodes goes on where it was: preempted, out of time, requeued, without power."""

import json
import re
import subprocess
from typing import Any

import pytest
from slurm_lab import Cluster, Project, squeue, wait

pytestmark = pytest.mark.timeout(300)
NUM_STEPS = 150
CHECKPOINT_EVERY = 10
GROUP_SIZE = 4


@pytest.fixture
def project(project: Project) -> Project:
    """One whose training can go on from every tenth step."""
    project.params["bootstrap"]["checkpoint_every_steps"] = CHECKPOINT_EVERY
    return project


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What the training leaves if nobody disturbs it, and without SLURM."""
    project = Project(tmp_path_factory.mktemp("whole"))
    project.params["launch"]["cluster"] = "local"
    return undisturbed(project)


@pytest.fixture(scope="session")
def whole_of_two(daemons: Cluster, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What a training on two nodes leaves if nobody disturbs it."""
    daemons.up()
    project = Project(tmp_path_factory.mktemp("whole_of_two"))
    project.params["bootstrap"]["group_size"] = GROUP_SIZE
    return undisturbed(project, nodes=2)


def undisturbed(project: Project, **asked: Any) -> dict[str, bytes]:
    """The output of a training; how often it saves is part of it."""
    project.params["bootstrap"]["checkpoint_every_steps"] = CHECKPOINT_EVERY
    code, said = project.bootstrap(num_steps=NUM_STEPS, **asked).end()
    assert code == 0, said
    return project.output("data/bootstrap")


def resumed_at(said: str) -> int:
    """The step after which a training said it goes on."""
    found = re.findall(r"going on after step (\d+)", said)
    assert found, said
    return int(found[-1])


def run_of(project: Project) -> list[str]:
    """The starts of the stage that tracking knows."""
    marks = project.folder.glob("work/bootstrap/*/tracking.json")
    return [json.loads(path.read_text())["status"] for path in marks]


def test_preempted(cluster: Cluster, project: Project, whole: dict[str, bytes]) -> None:
    running = project.bootstrap(num_steps=NUM_STEPS)
    wait(lambda: project.last_step() > 20, "20 steps")
    before = project.last_step()
    urgent = ["sbatch", "--partition=urgent", "--nodes=4", "--exclusive", "--output=/dev/null", "--wrap=sleep 2"]
    subprocess.run(urgent, check=True, stdout=subprocess.DEVNULL)
    code, said = running.end(200)
    assert code == 0, said
    assert "was queued again" in said
    assert resumed_at(said) >= before  # it saved when it was told to, not only every ten steps
    assert project.output("data/bootstrap") == whole
    assert len(project.jobs("bootstrap")) == 1
    assert run_of(project) == ["FINISHED"]


def test_out_of_time(cluster: Cluster, project: Project, whole: dict[str, bytes]) -> None:
    running = project.bootstrap(num_steps=NUM_STEPS, timeout_min=5)
    wait(lambda: project.last_step() > 20, "20 steps")
    subprocess.run(["scancel", "--signal=USR2", *cluster.jobs()], check=True)  # what SLURM does save_s before the limit
    code, said = running.end(200)
    assert code == 0, said
    assert "timed out" in said or "was queued again" in said
    assert project.output("data/bootstrap") == whole


def test_out_of_time_too_often(cluster: Cluster, project: Project) -> None:
    project.params["launch"]["max_timeouts"] = 0
    running = project.bootstrap(num_steps=100_000, timeout_min=5)
    wait(lambda: project.last_step() > 2, "some steps")
    subprocess.run(["scancel", "--signal=USR2", *cluster.jobs()], check=True)
    code, said = running.end()
    assert code == 2, said
    assert "raise its timeout_min or launch.max_timeouts" in said.splitlines()[-1]


def test_requeued_by_hand(cluster: Cluster, project: Project, whole: dict[str, bytes]) -> None:
    running = project.bootstrap(num_steps=NUM_STEPS)
    wait(lambda: project.last_step() > 20, "20 steps")
    subprocess.run(["scontrol", "requeue", *cluster.jobs()], check=True)
    code, said = running.end(200)
    assert code == 0, said
    assert resumed_at(said) >= 20
    assert project.output("data/bootstrap") == whole


def test_power_cut(cluster: Cluster, project: Project, whole: dict[str, bytes]) -> None:
    running = project.bootstrap(num_steps=NUM_STEPS)
    wait(lambda: project.last_step() > 20, "20 steps")
    cluster.node("kill", squeue("%N"))
    code, said = running.end(200)
    assert code == 0, said
    assert "was queued again" in said
    assert resumed_at(said) >= 10  # the last that was surely written
    assert project.output("data/bootstrap") == whole
    assert len(project.jobs("bootstrap")) == 1


@pytest.mark.parametrize("place", [0, 1])
def test_power_cut_of_one_of_two_nodes(
    cluster: Cluster, project: Project, whole_of_two: dict[str, bytes], place: int
) -> None:
    project.params["bootstrap"]["group_size"] = GROUP_SIZE
    running = project.bootstrap(num_steps=NUM_STEPS, nodes=2)
    wait(lambda: project.last_step() > 20, "20 steps")
    node = subprocess.run(["scontrol", "show", "hostnames", squeue("%N")], check=True, capture_output=True, text=True)
    cluster.node("kill", node.stdout.split()[place])
    code, said = running.end(200)
    if code == 1:  # the rank that lived failed first: the job is over, and what is started next goes on
        assert project.failure("bootstrap")["kind"] == "crash"
        code, said = project.bootstrap(num_steps=NUM_STEPS).end(200)
    assert code == 0, said
    assert resumed_at(said) >= 10  # the last that was surely written
    assert project.output("data/bootstrap") == whole_of_two


def test_a_controller_that_is_gone_for_a_while(cluster: Cluster, project: Project) -> None:
    running = project.bootstrap(num_steps=2 * NUM_STEPS)
    wait(lambda: project.last_step() > 2, "some steps")
    cluster.save()
    cluster.node("kill", "slurmctl")
    gone_at = project.last_step()
    wait(lambda: project.last_step() > gone_at + 40, "steps without a controller")
    cluster.node("start", "slurmctl")
    code, said = running.end(200)
    assert code == 0, said
    assert len(project.jobs("bootstrap")) == 1


def test_a_controller_that_lost_its_memory_of_a_job(
    cluster: Cluster, project: Project, whole: dict[str, bytes]
) -> None:
    running = project.bootstrap(num_steps=NUM_STEPS)
    wait(cluster.jobs, "a job")
    cluster.save()
    wait(lambda: project.last_step() > 20, "20 steps")
    cluster.node("kill", "slurmctl")
    for kept in (cluster.state / "ctld").glob("job_state*"):
        kept.unlink()
    cluster.node("start", "slurmctl")
    code, said = running.end(200)
    assert code == 1, said
    assert project.failure("bootstrap")["kind"] == "crash"
    wait(lambda: not project.is_alive(), "the nodes to end what nobody knows of")
    code, said = project.bootstrap(num_steps=NUM_STEPS).end(200)
    assert code == 0, said
    assert resumed_at(said) >= 10
    assert project.output("data/bootstrap") == whole


def test_a_node_that_is_frozen_for_a_while(cluster: Cluster, project: Project) -> None:
    running = project.bootstrap(num_steps=NUM_STEPS)
    wait(lambda: project.last_step() > 2, "some steps")
    node = squeue("%N")
    cluster.node("stop", node)
    wait(lambda: project.last_step() == NUM_STEPS, "the training to end")
    cluster.node("cont", node)
    code, said = running.end(200)
    assert code == 0, said
