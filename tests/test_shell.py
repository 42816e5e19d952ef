"""Values of params.yaml never reach a shell: not by dvc.yaml's commands, whatever they hold."""

from pathlib import Path
from typing import Any

import pytest
from dvc_project import command, make_project, shipped_stages, succeed

from dinov2.params import InputError, read_yaml
from tasks.options import filled_in

ROOT = Path(__file__).parents[1]
PARAMS: dict[str, Any] = read_yaml(ROOT / "params.yaml")
PAGE = '<html><body><img src="http://a.example/1.jpg"></body></html>'
KINDS = {"model": str, "seeds": Path, "backbone": Path, "out": Path}


@pytest.mark.parametrize("crawl", ["x; touch harmed", "a b'$(touch harmed)`touch harmed`\" & touch harmed"])
def test_a_path_with_what_a_shell_obeys_is_only_a_path(tmp_path: Path, crawl: str) -> None:
    make_project(tmp_path, shipped_stages("crawl"), inputs={"crawl": f"inputs/{crawl}"}, crawl=PARAMS["crawl"])
    (tmp_path / "inputs" / crawl).mkdir(parents=True)
    (tmp_path / "inputs" / crawl / "a.html").write_text(PAGE)
    succeed(tmp_path, "dvc", "repro", "crawl")
    assert (tmp_path / "data/crawl/records.parquet").exists()
    assert not list(tmp_path.rglob("harmed"))


@pytest.mark.parametrize("name", ["x'; touch harmed; '", "../../harmed"])
def test_a_model_s_name_with_what_a_shell_obeys_is_refused(tmp_path: Path, name: str) -> None:
    inputs = {"seeds": "inputs/seeds", "evaluation": "inputs/evaluation"}
    stages = {"evaluate": {"foreach": "${models}", "do": shipped_stages("evaluate")["evaluate"]["do"]}}
    make_project(tmp_path, stages, inputs=inputs, models={name: "pretrain"}, evaluate=PARAMS["evaluate"])
    for folder in ("data/pretrain", *inputs.values()):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "a").touch()
    done = command(tmp_path, "dvc", "repro")
    assert done.returncode != 0
    assert f"--model is '{name}'; give it a name of letters" in done.stderr + done.stdout
    assert not [path for path in tmp_path.rglob("*harmed*") if path.is_file()]
    assert not (tmp_path.parent / "harmed").exists()


def test_places_and_names_are_filled_in(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text('inputs: {seeds: "a b;c"}\nmodels: {x: distill/x}\n')
    options = {"model": "evaluate@x", "seeds": "{inputs.seeds}", "backbone": "data/{models.{model}}"}
    found = filled_in("evaluate", {**options, "out": "o/{model}"}, KINDS, tmp_path / "params.yaml")
    assert found == {"model": "x", "seeds": "a b;c", "backbone": "data/distill/x", "out": "o/x"}
    assert filled_in("crawl", {"seeds": "plain"}, KINDS, tmp_path / "nowhere.yaml") == {"seeds": "plain"}


@pytest.mark.parametrize("text", ["inputs: {}", "inputs: {seeds: 3}", "inputs: {seeds: ''}", "inputs: [seeds]", "a: 1"])
def test_a_place_without_a_path_is_a_mistake(tmp_path: Path, text: str) -> None:
    (tmp_path / "params.yaml").write_text(text)
    with pytest.raises(InputError, match=r"params\.yaml: inputs\.seeds is .*, not a path; mend it"):
        filled_in("embed", {"seeds": "{inputs.seeds}"}, KINDS, tmp_path / "params.yaml")
