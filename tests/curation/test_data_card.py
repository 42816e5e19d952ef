"""The data card: its numbers are the records', they add up or it says so, and it invents nothing."""

import json
import re
import shutil
from pathlib import Path

import pytest
from curation_outputs import Outputs, write_outputs

from dinov2.curation.data_card import data_card, main
from dinov2.params import InputError


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Outputs:
    return write_outputs(tmp_path_factory.mktemp("card"))


@pytest.fixture
def card(outputs: Outputs) -> str:
    return data_card(outputs.folders)


def change(outputs: Outputs, folder: Path, stage: str, **counts: int) -> Outputs:
    """A copy with other counts of one stage."""
    shutil.copytree(outputs.data, folder)
    path = folder / stage / "record.json"
    record = json.loads(path.read_text())
    record["counts"] |= counts
    path.write_text(json.dumps(record))
    return outputs._replace(data=folder)


def test_counts_are_the_records_and_add_up_to_the_image(card: str) -> None:
    assert "| filter | 10 | 9 | 1 too_small |" in card
    assert "| dedup | 9 | 6 | 2 copy, 1 evaluation_copy:held_out |" in card
    assert "17 given to crawl = 4 kept by retrieve + 13 dropped on the way" in card


def test_counts_that_do_not_add_up_are_said(outputs: Outputs, tmp_path: Path) -> None:
    card = data_card(change(outputs, tmp_path / "data", "filter", num_in=12).folders)
    assert "filter: +2 images are neither kept nor dropped" in card
    assert "download kept 10, filter was given 12" in card
    assert "add up to the image" not in card


def test_what_is_in_the_set_is_counted_from_its_manifest(card: str) -> None:
    assert card.startswith("# Data card of the curated set\n\n6 images")
    assert "| sample | 3 | 50.00 % |" in card
    assert "| a.example | 4 | 66.67 % |" in card
    assert "| label | 4 | 66.67 % |" in card
    assert "1 sources in all, each the label of seeds; 2 images have none." in card
    assert "| width | 60 | 60 | 60 | 60 | 60 | 60 | 60 |" in card


def test_filters_opt_outs_and_thresholds_are_those_of_the_params(card: str) -> None:
    assert "| nsfw | off |" in card
    assert "| faces.min_score | 0.5 |" in card
    assert "| download | opt_out.robots_txt | True |" in card
    assert "- 1 left out by download: tdm_header" in card
    assert "- 2 left out by crawl: page_meta_robots_noai" in card
    assert "left out by download: robots_unavailable" not in card
    assert "| evaluation_sets.held_out.min_cosine | 0.99 |" in card
    assert "| pair recall | 0.993 |" in card


def test_limits_follow_from_the_records(card: str) -> None:
    limits = card.partition("## Known limits")[2].partition("##")[0]
    assert "`filter.nsfw` is off" in limits
    assert "filter.faces" not in limits
    assert "whitened thumbnails" in limits
    assert "99.30 % of the pairs" in limits
    assert "opt-out" not in limits


def test_tables_are_tables(card: str) -> None:
    """Every row has the cells of its head, and a blank line stands before each table."""
    lines = card.splitlines()
    for number, line in enumerate(lines):
        if re.fullmatch(r"\|[-:|]+\|", line):
            assert lines[number - 2] == ""
            width = line.count("|")
            rows = lines[number - 1 :]
            for row in rows[: rows.index("")]:
                assert len(re.findall(r"(?<!\\)\|", row)) == width, row


def test_stage_without_record_is_told(outputs: Outputs, tmp_path: Path) -> None:
    shutil.copytree(outputs.data, tmp_path / "data")
    for stage in ("crawl", "download", "filter", "dedup", "embed"):
        shutil.rmtree(tmp_path / "data" / stage)
    card = data_card(outputs._replace(data=tmp_path / "data").folders)
    assert "Without a record: crawl, download, filter, embed, dedup." in card
    assert "Where the images come from is not recorded." in card
    assert "The recall of dedup's pairs is not recorded." in card


def test_command_prints_the_card_or_one_sentence(
    outputs: Outputs, card: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--data", str(outputs.data)]) == 0
    assert capsys.readouterr().out == card
    assert main(["--data", str(tmp_path)]) == 2
    assert "has no record.json; run retrieve" in capsys.readouterr().err
    with pytest.raises(InputError):
        data_card({})
