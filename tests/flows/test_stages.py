"""Which stages a run has, what is refused, and what needs what."""

from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from prefect.utilities.callables import parameter_schema
from prefect.utilities.schema_tools.validation import is_valid

from dinov2.params import InputError
from flows.curation import curation
from flows.evaluation import evaluation
from flows.full_pipeline import full_pipeline
from flows.stages import CURATION, EVALUATION, FLOWS, STAGES, TRAINING, choose, read_needs, with_order
from flows.training import training

ALL = {"full-pipeline": full_pipeline, "curation": curation, "training": training, "evaluation": evaluation}


def test_the_three_flows_make_up_the_full_pipeline() -> None:
    assert sorted(STAGES) == sorted([*CURATION, *TRAINING, *EVALUATION])
    assert {name: flow.name for name, flow in ALL.items()} == {name: name for name in FLOWS}


def test_stages_are_chosen_in_their_order_with_both_ends() -> None:
    assert choose(STAGES, "embed", "pretrain", ["dedup"]) == ("embed", "dedup", "retrieve", "pretrain")
    assert choose(TRAINING, "pretrain", "distill", []) == TRAINING


@pytest.mark.parametrize(
    ("start_at", "stop_at", "force", "sentence"),
    [
        ("embedd", "report", [], "start_at names 'embedd', which is no stage of this flow; it has crawl, download"),
        ("crawl", "reports", [], "stop_at names 'reports'"),
        ("crawl", "report", ["x"], "force names 'x', which is no stage"),
        ("pretrain", "embed", [], "start_at=pretrain comes after stop_at=embed; the order is crawl, download"),
        ("embed", "pretrain", ["crawl"], "force names 'crawl', which this run leaves out; it has embed, dedup"),
    ],
)
def test_a_wrong_choice_gets_a_sentence(start_at: str, stop_at: str, force: list[str], sentence: str) -> None:
    with pytest.raises(InputError) as raised:
        choose(STAGES, start_at, stop_at, force)
    assert str(raised.value).startswith(sentence)


@pytest.mark.parametrize("name", FLOWS)
def test_prefect_refuses_the_same_before_it_creates_a_run(name: str) -> None:
    stages = FLOWS[name]
    schema = with_order(parameter_schema(ALL[name]).model_dump(), stages)

    def is_chosen(**options: Any) -> bool:
        whole = {"start_at": stages[0], "stop_at": stages[-1], "force": [], **options}
        try:
            choose(stages, **whole)
        except InputError:
            return False
        return True

    ends = [{"start_at": first, "stop_at": last} for first in stages for last in stages]
    forces = [{**end, "force": [stage]} for end in ends for stage in stages]
    partly = [{option: stage} for option in ("start_at", "stop_at") for stage in (*stages, "unknown")]
    forced = [{"force": list(names)} for names in combinations([*stages, "unknown"], 2)]
    asked: list[dict[str, Any]] = [{}, *ends, *forces, *partly, *forced]
    assert [is_valid(options, schema) for options in asked] == [is_chosen(**options) for options in asked]  # pyright: ignore[reportArgumentType]


def test_what_needs_nothing_of_each_other_may_run_side_by_side(repository: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(repository)
    needs = read_needs(STAGES, split=True)
    assert needs["bootstrap"] == needs["crawl"] == frozenset()
    assert needs["embed"] == {"filter", "bootstrap"}
    assert needs["evaluate@random"] == {"pretrain"}
    assert needs["evaluate@demo-s"] == {"distill"}
    assert {name for name in needs if name.startswith("evaluate@")} < needs["report"]


def test_only_chosen_stages_are_waited_for(repository: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(repository)
    assert read_needs(("pretrain", "highres"), split=False) == {
        "pretrain": frozenset(),
        "highres": frozenset({"pretrain"}),
    }
    whole = read_needs(STAGES, split=False)
    assert list(whole) == list(STAGES)
    assert whole["evaluate"] == {"bootstrap", "pretrain", "highres", "distill"}


def test_models_that_are_no_mapping_get_a_sentence(tmp_path: Path, repository: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dvc.yaml").write_text((repository / "dvc.yaml").read_text())
    (tmp_path / "params.yaml").write_text("models: [pretrain]\n")
    with pytest.raises(InputError, match=r"models is \['pretrain'\], not names with places"):
        read_needs(STAGES, split=True)
