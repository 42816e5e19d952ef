"""Jobs on a real SLURM: submitted, followed, taken up again, cancelled, refused."""

import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
from slurm_lab import Cluster, Project, squeue, wait

from dinov2.hub import load_backbone

pytestmark = pytest.mark.timeout(240)


def test_a_training_over_nodes_and_gpus_is_that_of_one_process(cluster: Cluster, project: Project) -> None:
    project.params["bootstrap"]["group_size"] = 2
    code, said = project.bootstrap(nodes=2, gpus_per_node=2).end()
    assert code == 0, said
    code, said = project.bootstrap(nodes=1, gpus_per_node=0, out="data/single").end()
    assert code == 0, said
    many, one = (load_backbone(project.folder / "data" / name)[0].state_dict() for name in ("bootstrap", "single"))
    assert all((many[key] - one[key]).abs().max() < 1e-5 for key in one)


def test_an_array_has_a_limit_and_makes_the_same_bytes(cluster: Cluster, project: Project) -> None:
    pages = project.folder / "inputs/crawl"
    for number in range(5):
        tags = "".join(f'<img src="http://a.example/{number}-{image}.jpg">' for image in range(20_000))
        (pages / f"more{number}.html").write_text(f"<body>{tags}</body>")
    project.write(workers=3, max_running=1)
    running = project.start("crawl", "--crawl", "inputs/crawl", "--out", "data/crawl")
    wait(lambda: squeue("%F"), "the array")
    (number,) = set(squeue("%F").split())
    about = subprocess.run(["scontrol", "show", "job", number], check=True, capture_output=True, text=True).stdout
    assert "ArrayTaskThrottle=1" in about
    code, said = running.end()
    assert code == 0, said
    assert "[2] " in said
    project.params["launch"]["cluster"] = "local"
    project.write(workers=1)
    code, said = project.start("crawl", "--crawl", "inputs/crawl", "--out", "data/again").end()
    assert code == 0, said
    assert project.output("data/crawl") == project.output("data/again")


def test_a_submitter_that_was_killed_is_followed_by_the_next_without_a_second_job(
    cluster: Cluster, project: Project
) -> None:
    first = project.bootstrap(num_steps=60)
    wait(lambda: project.last_step() > 2, "the first steps")
    first.send(signal.SIGKILL)
    first.end()
    code, said = project.bootstrap(num_steps=60).end()
    assert code == 0, said
    assert "re-attaching to job" in said
    assert len(project.jobs("bootstrap")) == 1


def test_what_a_killed_submitter_could_not_note_is_cancelled(cluster: Cluster, project: Project) -> None:
    work = project.bootstrap()
    code, said = work.end()
    assert code == 0, said
    (folder,) = project.folder.glob("work/bootstrap/*/job")
    lost = ["sbatch", "--parsable", "--output=/dev/null", f"--comment=dinov2 {folder}"]
    stubborn = "srun sh -c \"trap '' TERM; for second in 1 2 3 4 5 6 7 8 9; do sleep 1; done\""
    number = subprocess.run([*lost, f"--wrap={stubborn}"], check=True, capture_output=True, text=True).stdout.strip()
    (folder / "job.json").unlink()
    wait(lambda: squeue("%T") == "RUNNING", "the lost job to run")
    running = project.bootstrap()
    wait(lambda: len(project.jobs("bootstrap")) == 2, "a second job")
    assert number not in cluster.jobs()
    code, said = running.end()
    assert code == 0, said
    assert f"waiting for the end of job {number}, which an earlier start left" in said


def test_a_stopped_stage_cancels_its_job(cluster: Cluster, project: Project) -> None:
    running = project.bootstrap(num_steps=100_000)
    wait(lambda: project.last_step() > 0, "the first step")
    running.send(signal.SIGTERM)
    code, said = running.end()
    assert code == 130, said
    wait(lambda: not cluster.jobs(), "the job to be gone")
    assert project.failure("bootstrap")["kind"] == "stopped"


def test_a_stage_that_is_started_while_its_stopped_job_ends_waits_for_that(cluster: Cluster, project: Project) -> None:
    running = project.bootstrap(num_steps=100_000)
    wait(lambda: project.last_step() > 0, "the first step")
    running.send(signal.SIGTERM)
    running.end()
    assert cluster.jobs()
    again = project.bootstrap(num_steps=100_000)
    wait(lambda: len(project.jobs("bootstrap")) == 2, "a second job")
    assert len(cluster.jobs()) == 1
    again.send(signal.SIGTERM)
    code, said = again.end()
    assert code == 130, said
    assert "is just ending; waiting for that" in said
    assert "was cancelled" in said.splitlines()[-1]


def test_a_job_that_somebody_cancelled_is_not_to_be_tried_again(cluster: Cluster, project: Project) -> None:
    running = project.bootstrap(num_steps=100_000)
    wait(lambda: project.last_step() > 0, "the first step")
    subprocess.run(["scancel", *cluster.jobs()], check=True)
    code, said = running.end()
    assert code == 1, said
    assert "was cancelled" in said.splitlines()[-1]
    assert project.failure("bootstrap")["kind"] == "cancelled"


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"partition": "nowhere"}, "invalid partition"),
        ({"gpus_per_node": 9}, "Requested node configuration is not available"),
        ({"nodes": 5}, "Node count specification invalid"),
        ({"timeout_min": 90, "partition": "short"}, "Requested time limit is invalid"),
        ({"constraint": "h100"}, "Invalid feature specification"),
    ],
)
def test_what_no_node_can_give_is_refused_in_one_sentence(
    cluster: Cluster, project: Project, asked: dict[str, Any], told: str
) -> None:
    subprocess.run(["scontrol", "create", "partition=short", "nodes=ALL", "maxtime=60"], check=False)
    code, said = project.bootstrap(**asked).end()
    assert code == 2, said
    last = said.splitlines()[-1]
    assert told.lower() in last.lower(), last
    assert "mend `launch:` in params.yaml" in last
    assert not cluster.jobs()


def test_a_job_that_would_wait_for_ever_is_not_waited_for(cluster: Cluster, project: Project) -> None:
    failed = ["sbatch", "--parsable", "--output=/dev/null", "--wrap=false"]
    number = subprocess.run(failed, check=True, capture_output=True, text=True).stdout.strip()
    wait(lambda: number not in cluster.jobs(), "the job to fail")
    code, said = project.bootstrap(sbatch={"dependency": f"afterok:{number}"}).end()
    assert code == 2, said
    assert "would wait for ever (DependencyNeverSatisfied)" in said.splitlines()[-1]
    assert not cluster.jobs()


def test_a_job_that_its_node_cannot_begin_is_not_waited_for(cluster: Cluster, project: Project, tmp_path: Path) -> None:
    prolog = tmp_path / "prolog"
    prolog.write_text("#!/bin/sh\nexit 1\n")
    prolog.chmod(0o755)
    config = cluster.state / "slurm.conf"
    text = config.read_text()
    try:
        config.write_text(f"{text}Prolog={prolog}\n")
        subprocess.run(["scontrol", "reconfigure"], check=True)
        code, said = project.bootstrap().end()
    finally:
        config.write_text(text)
        subprocess.run(["scontrol", "reconfigure"], check=True)
        wait(cluster.resumed, "nodes that are in use again")
    assert code == 1, said
    assert "it is let go once" in said
    assert "could not be begun by its node (launch failed requeued held)" in said.splitlines()[-1]
    assert project.failure("bootstrap")["kind"] == "crash"
    assert not cluster.jobs()


def test_nodes_that_do_not_share_the_folder_are_told_of(cluster: Cluster, project: Project) -> None:
    for number in range(1, 5):
        space = f"--mount=/proc/{_daemon(cluster, number)}/ns/mnt"
        enter = ["nsenter", space, "mount", "-t", "tmpfs", "none", str(project.folder)]
        subprocess.run(enter, check=True)
    try:
        code, said = project.bootstrap().end()
    finally:
        for number in range(1, 5):
            enter = ["nsenter", f"--mount=/proc/{_daemon(cluster, number)}/ns/mnt", "umount", str(project.folder)]
            subprocess.run(enter, check=True)
    assert code == 2, said
    assert "a file system they share" in said.splitlines()[-1]


def _daemon(cluster: Cluster, number: int) -> int:
    """The process of a node's first process below unshare."""
    unshare = int((cluster.state / f"run/node{number}.pid").read_text().split()[0])
    return int(Path(f"/proc/{unshare}/task/{unshare}/children").read_text().split()[0])


def test_a_process_that_was_killed_is_told_by_its_signal(cluster: Cluster, project: Project) -> None:
    running = project.bootstrap(num_steps=100_000)
    wait(lambda: project.last_step() > 0, "the first step")
    subprocess.run(["pkill", "-KILL", "-f", f"submitit.core._submit {project.folder}"], check=True)
    code, said = running.end()
    assert code == 1, said
    assert "ended without a result" in said.splitlines()[-1]
    assert project.failure("bootstrap")["kind"] == "crash"
