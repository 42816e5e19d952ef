"""The doctor finds what is wrong before anything starts, says what to do, and goes on with the other checks."""

from pathlib import Path

import pytest

from tasks.doctor.__main__ import findings
from tasks.doctor.params import check_params
from tasks.doctor.partitions import read_partitions, shortcomings
from tasks.doctor.services import check_dvc
from tasks.resources import Resources

ROOT = Path(__file__).parents[2]
ASKED = Resources(
    nodes=1, gpus_per_node=0, cpus_per_task=4, memory_gb=8, timeout_min=60, workers=1, max_running=1, partition="gpu",
    account=None, constraint=None, sbatch={}, setup=[], python=None,
)  # fmt: skip
SAID = """\
gpu|4|32|256000|gpu:a100:8(S:0,2-3),mps:400|3-00:00:00
cpu*|10|64|128000|(null)|30:00
cpu*|2|8|16000|(null)|30:00
mixed|1|16|64000|gpu:4,gpu:v100:2|infinite
mixed|1|96|64000|(null)|infinite
empty|0|0|0|(null)|UNLIMITED
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the shipped params, their inputs, and no DVC."""
    for name in ("params.yaml", "dvc.yaml", "constraints.txt"):
        (tmp_path / name).write_text((ROOT / name).read_text())
    for name in ("crawl", "seeds", "evaluation"):
        (tmp_path / f"inputs/demo/{name}").mkdir(parents=True)
        (tmp_path / f"inputs/demo/{name}/a").touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def problems(project: Path) -> list[str]:
    return [found.what for found in findings(project / "params.yaml") if found.level == "problem"]


def edit(project: Path, old: str, new: str) -> None:
    text = (project / "params.yaml").read_text()
    assert old in text
    (project / "params.yaml").write_text(text.replace(old, new))


def test_a_project_is_well_but_for_what_it_lacks(project: Path) -> None:
    (only,) = problems(project)
    assert "no .dvc here" in only
    assert not list((project / "work").iterdir())


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("group_size: 32\n  num_steps: 24", "group_size: 33\n  num_steps: 24", "highres"),
        ("  cluster: local ", "  cluster: moon ", "launch.cluster"),
        ("gpus_per_node: 0", "gpus_per_node: 9", "asks for 9 GPUs, there are"),
        ("nodes: 1,", "nodes: 2,", "asks for 2 nodes, there are 1"),
        ("nsfw: null ", "nsfw: {path: no.onnx, sha256: x, max_score: 0.5} #", "no.onnx does not exist"),
        ("_files: [] ", "_files: [{path: no.txt, sha256: x}] #", "refused_domain_files.0.path: no.txt does not exist"),
        ("init_from: null ", "init_from: {path: no.pth, architecture: null} #", "init_from: no.pth does not exist"),
        ("backbone: null ", "backbone: nowhere #", "bootstrap.backbone: nowhere does not exist"),
        ("  crawl: inputs", "  crawls: inputs", "does not say where inputs.crawl is"),
    ],
)  # fmt: skip
def test_a_mistake_is_a_problem_that_names_its_place(project: Path, old: str, new: str, told: str) -> None:
    edit(project, old, new)
    assert any(told in line for line in problems(project)), problems(project)


def test_a_warmup_longer_than_its_training_is_a_warning(project: Path) -> None:
    edit(project, "  num_steps: 135", "  num_steps: 10")
    told = [found.what for found in findings(project / "params.yaml") if found.level == "warning"]
    assert any("pretrain: warmup_steps is 10" in line for line in told), told


def test_a_launch_of_no_stage_is_a_warning(project: Path) -> None:
    edit(project, "  stages: {} ", "  stages: {pretrian: {nodes: 1}} #")
    told = [found.what for found in check_params(project / "params.yaml") if found.level == "warning"]
    assert any("launch.stages.pretrian is of no stage" in line for line in told), told


@pytest.mark.parametrize("text", [None, "a: [b"])
def test_params_that_cannot_be_read_are_told_once_and_the_rest_is_looked_at(project: Path, text: str | None) -> None:
    (project / "params.yaml").unlink()
    if text is not None:
        (project / "params.yaml").write_text(text)
    found = list(findings(project / "params.yaml"))
    assert len([line for line in found if "params.yaml" in line.what]) == 1, found
    assert any("no .dvc here" in line.what for line in found)


def test_a_check_that_cannot_be_made_is_a_line(project: Path) -> None:
    (project / "constraints.txt").unlink()
    (project / "work").touch()
    found = problems(project)
    assert any(line.startswith("packages: can't be looked at (FileNotFoundError") for line in found), found
    assert any(line.startswith("clock: can't be looked at (FileExistsError") for line in found), found
    assert any("no .dvc here" in line for line in found)


def test_empty_and_missing_inputs_are_told_apart(project: Path) -> None:
    (project / "inputs/demo/seeds/a").unlink()
    (project / "inputs/demo/crawl/a").unlink()
    (project / "inputs/demo/crawl").rmdir()
    found = problems(project)
    assert any("seeds is empty" in line for line in found)
    assert any("crawl does not exist" in line for line in found)


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({}, None),
        ({"partition": None, "cpus_per_task": 1000}, "which the default partition has none of"),
        ({"partition": "moon"}, "'moon', which does not exist; there are cpu, empty, gpu, mixed"),
        ({"partition": "gpu,moon"}, "'moon', which does not exist"),
        ({"partition": "cpu,gpu", "gpus_per_node": 8, "timeout_min": 60}, None),
        ({"gpus_per_node": 8}, None),
        ({"gpus_per_node": 9, "cpus_per_task": 1}, "asks for GPUs, 9 a node, and no node of partition 'gpu' has more"),
        ({"nodes": 4}, None),
        ({"nodes": 5}, "asks for 5 nodes, and partition 'gpu' has 4"),
        ({"memory_gb": 250}, None),
        ({"memory_gb": 251}, "251 GB"),
        ({"partition": "mixed", "cpus_per_task": 96, "timeout_min": 10**6}, None),
        ({"partition": "mixed", "gpus_per_node": 6, "cpus_per_task": 2}, None),
        ({"partition": "mixed", "gpus_per_node": 6, "cpus_per_task": 4}, "24 cores and 8 GB with 6 GPUs"),
        ({"partition": "empty"}, "partition 'empty' has none of"),
        ({"memory_gb": 300}, "300 GB"),
        ({"gpus_per_node": 1, "partition": "cpu", "timeout_min": 10}, "asks for GPUs"),
        ({"timeout_min": 5000}, "gives 4320"),
        ({"partition": "cpu", "timeout_min": 31}, "gives 30"),
        ({"partition": None, "timeout_min": 31}, "the default partition gives 30"),
    ],
)
def test_partitions_are_held_against_what_is_asked(changed: dict[str, object], told: str | None) -> None:
    found = list(shortcomings("pretrain", ASKED.model_copy(update=changed), read_partitions(SAID)))
    assert found == [] if told is None else any(told in line for line in found), found


def test_a_remote_that_is_not_the_default_is_told(project: Path) -> None:
    (project / ".dvc").mkdir()
    (project / ".dvc/config").write_text("[core]\n    no_scm = true\n['remote \"far\"']\n    url = /far\n")
    told = [found.what for found in check_dvc(project / "params.yaml")]
    assert "no remote is the default" in told[0]
    edit_config = (project / ".dvc/config").read_text().replace("[core]\n", "[core]\n    remote = far\n")
    (project / ".dvc/config").write_text(edit_config)
    told = [found.what for found in check_dvc(project / "params.yaml")]
    assert told[0].endswith("remote far")


def test_without_a_default_partition_slurm_alone_knows_where_a_job_goes() -> None:
    asked = ASKED.model_copy(update={"partition": None, "cpus_per_task": 1000})
    assert not list(shortcomings("pretrain", asked, read_partitions(SAID.replace("*", ""))))
