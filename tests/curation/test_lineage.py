"""Lineage: an image's story is whole, ends where it ended, and a wrong id is told in one sentence."""

from pathlib import Path

import pytest
from curation_outputs import Outputs, write_outputs

from dinov2.curation.descriptors import EMBEDDED
from dinov2.curation.lineage import as_text, main
from dinov2.curation.looking.trace import chain, fate, trace
from dinov2.params import InputError
from dinov2.records import MANIFEST, REMOVED, read_table, write_table


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Outputs:
    return write_outputs(tmp_path_factory.mktemp("lineage"))


def outcomes(outputs: Outputs, wanted: str) -> list[tuple[str, str]]:
    return [(event.stage, event.outcome) for event in trace(outputs.data, wanted).events]


def test_taken_image_passes_through_every_stage(outputs: Outputs) -> None:
    story = trace(outputs.data, outputs.ids["p0"])
    stages = ["crawl", "download", "filter", "embed", "dedup", "retrieve"]
    assert [(event.stage, event.outcome) for event in story.events] == [(stage, "kept") for stage in stages]
    text = as_text(story)
    for fact in (
        "on the page https://a.example/page", "its answer is in a.warc.gz at 7", "met again 1 times: repeated",
        "the same bytes came from 1 other URLs: https://b.example/same.jpg", "60 x 50 px", "row 0 of pool",
        "stands for 2 copies", f"sample-based by the seed {outputs.ids['s0']} (label/s0.jpg), cosine 1.000",
    ):  # fmt: skip
        assert fact in text


def test_copy_of_a_copy_is_led_to_what_stayed(outputs: Outputs) -> None:
    links = chain(outputs.data, outputs.ids["p6"])
    assert [link.witness_id for link in links] == [outputs.ids["p5"], outputs.ids["p0"]]
    story = trace(outputs.data, outputs.ids["p6"])
    assert story.events[-1].outcome == "dropped"
    assert story.events[-1].facts[-1] == "the last of these is in the curated set (sample)"
    assert "cosine 0.999" in story.events[-1].facts[0]


def test_copy_of_an_evaluation_image_names_it(outputs: Outputs) -> None:
    facts = trace(outputs.data, outputs.ids["p7"]).events[-1].facts
    assert facts[0].startswith(f"evaluation_copy:held_out of {'e' * 64}")
    assert facts[-1] == "the last of these is an evaluation image"


def test_chain_ends_where_the_witness_has_the_same_bytes(outputs: Outputs, tmp_path: Path) -> None:
    same = {"id": "a" * 64, "reason": "copy", "witness_id": "a" * 64, "cosine": 1.0}
    write_table(tmp_path / "dedup/removed.parquet", REMOVED, [same])
    assert [link.witness_id for link in chain(tmp_path, "a" * 64)] == ["a" * 64]


def test_stories_without_a_witness_end_and_name_the_stage(outputs: Outputs, tmp_path: Path) -> None:
    ids = [digit * 64 for digit in "abc"]
    bad = {"id": ids[0], "reason": "bad_descriptor"}
    circle = {"id": ids[1], "reason": "copy", "witness_id": ids[1], "cosine": 1.0}
    write_table(tmp_path / "dedup/removed.parquet", REMOVED, [bad, circle, {**circle, "id": ids[2]}])
    write_table(tmp_path / "embed/removed/pool.parquet", REMOVED, [{"id": "d" * 64, "reason": "undecodable"}])
    rows = [dict.fromkeys(EMBEDDED.names) | {"id": image, "width": 1, "height": 1} for image in ids]
    write_table(tmp_path / "embed/pool.parquet", EMBEDDED, rows)
    write_table(tmp_path / "filter/manifest.parquet", MANIFEST, [{"id": "f" * 64}])
    assert chain(tmp_path, ids[0]) == []
    assert trace(tmp_path, ids[0]).events[-1].facts == ["bad_descriptor"]
    assert trace(tmp_path, ids[2]).events[-1].outcome == "dropped"
    assert fate(tmp_path, "d" * 64) == "dropped by embed: undecodable"
    assert fate(tmp_path, "f" * 64) == "kept so far"


def test_blurred_image_is_followed_from_either_end(outputs: Outputs) -> None:
    for name in ("p9", "q9"):
        story = trace(outputs.data, outputs.ids[name])
        assert ("filter", "blurred") in [(event.stage, event.outcome) for event in story.events]
        assert story.events[-1] == ("retrieve", "dropped", ["not_retrieved"])
        assert story.url == "https://a.example/p9.jpg"


def test_image_ends_where_it_was_dropped(outputs: Outputs) -> None:
    assert outcomes(outputs, outputs.ids["p8"])[-1] == ("filter", "dropped")
    assert outcomes(outputs, "https://b.example/gone.jpg") == [("crawl", "kept"), ("download", "dropped")]
    assert outcomes(outputs, "https://bad.example/x.jpg") == [("crawl", "dropped")]
    assert outcomes(outputs, "label/s0.jpg")[-1] == ("retrieve", "joined")


def test_url_of_equal_bytes_leads_to_the_image_that_was_stored(outputs: Outputs) -> None:
    story = trace(outputs.data, "https://b.example/same.jpg")
    assert story.id == outputs.ids["p0"]
    assert story.events[0].facts[0].startswith("duplicate_bytes")


def test_first_digits_find_the_image_if_no_other_has_them(outputs: Outputs, tmp_path: Path) -> None:
    assert trace(outputs.data, outputs.ids["p4"][:10]).id == outputs.ids["p4"]
    rows = read_table(outputs.data / "filter/removed.parquet", REMOVED)
    twins = [{**rows[0], "id": "abcdef" + digit * 58} for digit in "01"]
    write_table(tmp_path / "embed/removed/seeds.parquet", REMOVED, twins)
    with pytest.raises(InputError, match="abcdef begins the ids of 2 images"):
        trace(tmp_path, "abcdef")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["0" * 64], "no image below"),
        (["abc"], "'abc' is short for an id"),
        (["https://nobody.example/"], "knows https://nobody.example/"),
        (["abcdef", "--data", "nowhere"], "--data nowhere is no folder"),
    ],
)
def test_what_cannot_be_found_is_one_sentence_and_exit_code_2(
    outputs: Outputs, capsys: pytest.CaptureFixture[str], arguments: list[str], told: str
) -> None:
    assert main(["--data", str(outputs.data), *arguments]) == 2
    error = capsys.readouterr().err
    assert told in error
    assert len(error.splitlines()) == 1


def test_table_that_is_cut_short_is_named(outputs: Outputs, tmp_path: Path) -> None:
    whole = (outputs.data / "download/manifest.parquet").read_bytes()
    (tmp_path / "download").mkdir()
    (tmp_path / "download/manifest.parquet").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"manifest\.parquet is not a readable Parquet file"):
        trace(tmp_path, "abcdef")


def test_page_shows_the_image_its_witness_and_what_is_gone(
    outputs: Outputs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    params = tmp_path / "params.yaml"
    params.write_text(f"store: {{url: '{outputs.store.params.url}', cache: cache, remote: null}}\n")
    page = tmp_path / "story.html"
    arguments = [outputs.ids["p7"], "--data", str(outputs.data), "--params", str(params), "--thumbnails", str(page)]
    assert main(arguments) == 0
    assert capsys.readouterr().out.startswith(f"image      {outputs.ids['p7']}")
    text = page.read_text()
    assert text.count("data:image/jpeg;base64,") == 1
    assert "not in a shard" in text  # the evaluation image
