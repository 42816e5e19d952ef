"""Every stage on SLURM, its submitter killed on the way: no second job, and the outputs of a run without SLURM."""

import signal
from pathlib import Path
from typing import Any

import pytest
from slurm_lab import ROOT, Cluster, Project, wait

from dinov2.params import read_yaml
from flows.stages import STAGES

MODELS = {"baselines": "pretrain", "random": "pretrain", "highres": "highres", "demo-s": "distill/demo-s"}


def commands(project: Project) -> list[tuple[str, list[str]]]:
    """(instance, options) of every stage, as dvc.yaml has them."""
    entries: dict[str, Any] = read_yaml(ROOT / "dvc.yaml")["stages"]  # pyright: ignore[reportAssignmentType]
    found: list[tuple[str, list[str]]] = []
    for stage in STAGES:
        command = entries[stage].get("do", entries[stage])["cmd"]
        for key in project.params["models"] if "$DVC_STAGE" in command else [""]:
            words = command.replace('"$DVC_STAGE"', key).split()
            found.append((f"{stage}@{key}" if key else stage, words[3:]))
    return found


@pytest.mark.timeout(1200)
def test_killed_in_each_stage(cluster: Cluster, tmp_path: Path) -> None:
    here, there = Project(tmp_path / "here"), Project(tmp_path / "there")
    for project, where in ((here, "local"), (there, "slurm")):
        project.params["launch"]["cluster"] = where
        project.params["models"] = MODELS
        project.params["report"]["models"] = [name for name in MODELS if name != "baselines"]
        project.write()
        for name in ("crawl", "download", "filter", "embed", "dedup"):
            project.params["launch"]["stages"][name] = {"workers": 2 if where == "slurm" else 1}
        project.write()
    for instance, options in commands(here):
        stage = instance.partition("@")[0]
        code, said = here.start(stage, *options).end()
        assert code == 0, said
        first = there.start(stage, *options)
        noted = f"work/{instance}/*/job*/job.json"  # before it, a job is ended and submitted again: test_launch.py
        wait(lambda files=noted: [*there.folder.glob(files)], f"a job of {instance}")
        first.send(signal.SIGKILL)
        first.end()
        code, said = there.start(stage, *options).end()
        assert code == 0, said
        again = list(there.folder.glob(f"work/{instance}/*/job*/attempts/2"))
        assert not again, f"{instance} was submitted twice: {said}"
    mine, theirs = here.output("data"), there.output("data")
    assert mine.keys() == theirs.keys()
    assert [name for name in mine if mine[name] != theirs[name]] == []
