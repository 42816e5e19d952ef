"""The page rendered from a made-up run: what it says, that its counts add up, that it loads nothing."""

import re
import shutil
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest

from dinov2.params import InputError
from dinov2.records import write_json
from dinov2.report.funnel import read_funnel
from dinov2.report.page import Report, render
from dinov2.report.params import ReportParams
from dinov2.report.table import plain_table, read_judged

PARAMS = ReportParams(
    title="A <test> run",
    models=["random", "bootstrap", "pretrain", "highres", "demo-s", "demo-b", "demo-l"],
    teacher="highres",
    curves=["dino_global", "ibot"],
    num_removed_shown=3,
    num_seeds_shown=2,
    num_retrieved_shown=3,
    thumbnail_px=48,
    num_resamples=500,
    seed=0,
    mlflow_url="http://127.0.0.1:5000/#/experiments/1/runs",
    prefect_url="",
)


class Loads(HTMLParser):
    """Collects what a browser would fetch, and checks that tags are closed."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta", "img", "br", "rect", "link", "i"):
            self.open.append(tag)
        for name, value in attrs:
            if name in ("src", "srcset", "data", "poster") or (name == "href" and tag != "a"):
                self.addresses.append(value or "")
        assert tag not in ("script", "iframe", "link", "object", "embed")

    def handle_endtag(self, tag: str) -> None:
        if tag not in ("rect", "i"):
            assert self.open.pop() == tag


def rendered(run) -> Report:
    return render(PARAMS, run.outputs, seeds=run.seeds, store=run.store)


@pytest.fixture(scope="module")
def report(run) -> Report:
    """The page of the made-up run."""
    return rendered(run)


def test_page_loads_nothing_and_is_well_formed(report: Report) -> None:
    html = report.html
    page = Loads()
    page.feed(html)
    assert page.open == []
    assert len(page.addresses) > 10
    assert all(address.startswith("data:image/") for address in page.addresses)
    assert not re.search(r"@import|url\(", html)
    assert "A &lt;test&gt; run" in html


def test_page_is_the_same_bytes_twice(run, report: Report) -> None:
    assert rendered(run).html == report.html


def test_page_tells_task_summary_and_what_is_missing(report: Report) -> None:
    assert "The task is instance recognition." in report.html
    assert "pretraining gained 50.0 points" in report.html
    assert report.missing == ["evaluation of demo-l"]
    assert "searchFilter=attributes.run_name%20%3D%20%27evaluate%40random%27" in report.html


def test_funnel_adds_up_and_says_so_where_it_does_not(own_run) -> None:
    steps = read_funnel(own_run.outputs)
    assert [step.stage for step in steps] == ["crawl", "download", "filter", "embed", "dedup", "retrieve"]
    for step, following in pairwise(steps):
        assert step.num_in == step.num_kept + sum(reason.num for reason in step.reasons)
        assert following.num_in == step.num_kept
        assert not step.notes
    counts = {"num_in": 40, "num_kept": 30, "dropped": {"near_copy": 9}}
    write_json(own_run.outputs["dedup"] / "record.json", {"counts": counts, "version": 1, "params": {}})
    notes = next(step.notes for step in read_funnel(own_run.outputs) if step.stage == "dedup")
    assert "do not add up" in notes[0]
    assert "this stage was given 40" in notes[1]


def test_copies_are_shown_beside_their_witness(report: Report) -> None:
    near_copy = report.html[report.html.index("<header><b>near copy</b>") :]
    assert near_copy[: near_copy.index("</figure>")].count("data:image/jpeg") == 2
    assert "cosine 0.970" in near_copy


def test_page_stands_without_any_output(tmp_path: Path, run) -> None:
    empty = {stage: tmp_path / "empty" / stage for stage in run.outputs}
    for folder in empty.values():
        folder.mkdir(parents=True)
    report = render(PARAMS, empty, seeds=tmp_path / "none" / "seeds", store=run.store)
    assert "Nothing was evaluated yet." in report.html
    assert "curves of pretrain" in report.missing
    assert report.judged is None


def test_differences_are_paired_and_students_are_compared_with_the_teacher(run) -> None:
    judged = read_judged(run.outputs["evaluate"], ["demo-s", "demo-b"], PARAMS)
    assert judged is not None
    assert [row.kind for row in judged.rows] == ["baseline"] * 2 + ["random"] + ["network"] * 3 + ["student"] * 2
    student = judged.row("demo-b")
    assert student is not None
    assert student.to_teacher is not None
    assert student.to_teacher.value == pytest.approx(44 / 60 - 45 / 60)
    assert student.to_teacher.high <= 0.0  # it is right nowhere that the teacher is not; unpaired it would be above 0
    about, _, *table = plain_table(judged).splitlines()
    assert about.startswith("60 held-out images of 3 labels")
    assert len(table) == 2 + len(judged.rows)
    assert len({len(line) for line in table}) == 1


def test_models_judged_on_different_images_are_refused(own_run) -> None:
    other = own_run.outputs["evaluate"] / "highres" / "predictions.json"
    write_json(other, {"ids": ["x"], "labels": ["a"], "methods": {"knn": ["a"]}})
    with pytest.raises(InputError, match="judge different images"):
        read_judged(own_run.outputs["evaluate"], [], PARAMS)


def test_a_blob_that_is_absent_is_named(own_run) -> None:
    shutil.rmtree(own_run.store.root)
    with pytest.raises(InputError, match="is not in the store"):
        rendered(own_run)
