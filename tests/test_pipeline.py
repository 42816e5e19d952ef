"""dvc.yaml is the only DAG: the flow's order, the task files and the sections of params.yaml must agree with it."""

import re
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from dinov2.params import read_yaml
from flows.stages import STAGES

ROOT = Path(__file__).parents[1]
NOT_STAGES = {"inputs", "models", "gates", "store", "flows", "launch", "tracking"}
STAGE_ENTRIES: dict[str, Any] = read_yaml(ROOT / "dvc.yaml")["stages"]  # pyright: ignore[reportAssignmentType]


def entry(stage: str) -> dict[str, Any]:
    """The stage's body in dvc.yaml, also where it is a matrix."""
    return STAGE_ENTRIES[stage].get("do", STAGE_ENTRIES[stage])


def test_flow_order_is_a_topological_order_of_the_dag() -> None:
    assert sorted(STAGES) == sorted(STAGE_ENTRIES)
    made: set[str] = set()
    for stage in STAGES:
        needed = [path for path in entry(stage)["deps"] if path.startswith("data/") and path != "data/${item}"]
        for path in needed:
            assert path.split("/")[1] in made, f"{stage} needs {path} before it is made"
        made.add(stage)


@pytest.mark.parametrize("stage", STAGES)
def test_stage_has_one_name_in_dvc_task_and_params(stage: str) -> None:
    assert f"python -m tasks.{stage} " in entry(stage)["cmd"]
    assert entry(stage)["params"] == [stage, {f"tasks/{stage}.py": ["VERSION"]}]
    assert isinstance(import_module(f"tasks.{stage}").VERSION, int)


def test_no_stage_depends_on_where_it_runs_or_who_watches() -> None:
    sections = set(read_yaml(ROOT / "params.yaml"))
    assert sections == set(STAGES) | NOT_STAGES
    for stage in STAGES:
        assert not NOT_STAGES & {name for name in entry(stage)["params"] if isinstance(name, str)}


@pytest.mark.parametrize("stage", STAGES)
def test_every_folder_of_the_command_is_a_dependency_or_the_output(stage: str) -> None:
    same = {'"$DVC_STAGE"': "${key}", "{model}": "${key}", "{models.${key}}": "${item}"}
    command = re.sub(r"(?<!\$)\{inputs", "${inputs", entry(stage)["cmd"])
    for ours, dvc in same.items():
        command = command.replace(ours, dvc)
    words = command.split()
    folders = [word for option, word in pairwise(words) if option.startswith("--")]
    known = {*entry(stage)["deps"], *entry(stage)["outs"]}
    for folder in folders:
        assert folder == "${key}" or folder in known, folder


@pytest.mark.parametrize("stage", STAGES)
def test_no_value_of_params_is_in_a_command_since_a_shell_reads_it(stage: str) -> None:
    assert "${" not in entry(stage)["cmd"]


def test_the_report_shows_the_models_that_are_evaluated_and_every_student_is() -> None:
    params: dict[str, Any] = read_yaml(ROOT / "params.yaml")
    models = params["models"]
    assert list(models) == ["baselines", *params["report"]["models"]]
    assert {f"distill/{name}" for name in params["distill"]["students"]} <= set(models.values())
