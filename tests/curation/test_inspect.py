"""The inspection page: what it says of each neighbour, pair and removal, and that it does not change by itself."""

import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.dataset as ds
import pytest
from curation_outputs import Outputs, on_circle, picture, write_outputs

from dinov2 import lookup
from dinov2.curation.inspect import inspection_page, main
from dinov2.curation.looking.borderline import borderlines, thresholds
from dinov2.curation.looking.neighborhoods import CENTROIDS, neighborhoods
from dinov2.curation.params import InspectParams
from dinov2.lookup import first_by_id, read_record, rows_at, sample_by
from dinov2.params import InputError
from dinov2.records import REMOVED, write_table


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Outputs:
    return write_outputs(tmp_path_factory.mktemp("inspect"))


def params(**changes: int) -> InspectParams:
    values = {
        "num_seeds": 2, "num_neighbors": 9, "num_pairs": 4, "num_removed": 3, "num_sampled": 50, "max_rows": 1000,
        "seed": 0, "thumbnail_px": 32,
    }  # fmt: skip
    return InspectParams(**{**values, **changes})


def seen(outputs: Outputs, **changes: int) -> Any:
    folders = {name: outputs.folders[name] for name in ("embed", "dedup", "retrieve")}
    return neighborhoods(params(**changes), store=outputs.store, choose={"min_cosine": 0.9}, **folders)


def test_each_neighbour_has_its_cosine_and_what_became_of_it(outputs: Outputs) -> None:
    first, second = seen(outputs).panels
    names = {image: name for name, image in outputs.ids.items()}
    about = {names[near.id]: (near.status, near.about) for near in first.neighbors}
    assert [names[near.id] for near in first.neighbors] == ["p0", "p5", "p6", "p1", "p2", "p4", "q9", "p3", "p7"]
    assert first.neighbors[3].cosine == pytest.approx(np.cos(np.radians(9)), abs=1e-3)
    assert about["p1"] == ("taken", "taken, sample")
    assert about["p5"] == ("gone", "copy 0.999")
    assert about["p7"] == ("gone", "evaluation copy:held out 1.000")
    assert about["p4"] == ("left", "not retrieved")
    assert about["p3"] == ("other", "another's, cluster 1.000")
    assert {near.id: near.witness_id for near in first.neighbors}[outputs.ids["p6"]] == outputs.ids["p5"]
    assert first.brought == "brought in 3 (sample)"
    assert second.brought == "brought in 1 (cluster)"


def test_cluster_of_images_that_were_not_taken_comes_from_the_centroids(outputs: Outputs, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(outputs.data, data)
    assert {near.cluster for near in seen(outputs).panels[0].neighbors} == {4, None}
    np.save(data / "retrieve" / CENTROIDS, on_circle(80, 0)[::-1])
    first = seen(Outputs(data, outputs.store, outputs.ids)).panels[0]
    assert [near.cluster for near in first.neighbors] == [0, 0, 0, 0, 0, 1, 1, 1, 1]
    assert first.cluster == 0


def test_ranks_tell_what_another_n_would_bring_in(outputs: Outputs) -> None:
    ranks = {row.rank: row for row in seen(outputs).ranks}
    assert ranks[1].distinct_a_seed == 1.0
    assert ranks[4].share_above == 0.5  # of the seed at 1 degree the fourth is at 10, of that at 91 the fourth at 45
    assert ranks[8].distinct_a_seed < 8


def test_pairs_on_either_side_of_the_threshold_are_found(outputs: Outputs) -> None:
    folders = outputs.folders
    asked = thresholds(read_record(folders["dedup"])["params"])  # pyright: ignore[reportOptionalSubscript]
    asked[1] = asked[1]._replace(folder="label/")  # as a person may write it
    copies, held_out = borderlines(
        params(), asked, embed=folders["embed"], dedup=folders["dedup"], store=outputs.store
    )
    assert len(copies.removed) == 1  # one a step of cosine, of two
    assert copies.removed[0].cosine == pytest.approx(np.cos(np.radians(3)), abs=1e-6)
    assert copies.num_removed == 2
    assert {frozenset(pair[:2]) for pair in copies.kept} <= {
        frozenset((outputs.ids[a], outputs.ids[b])) for a, b in (("p0", "p1"), ("p1", "p2"), ("p4", "q9"), ("p0", "p2"),
                                                                 ("p2", "p4"))
    }  # fmt: skip
    assert all(0.895 <= pair.cosine < 0.995 for pair in copies.kept)
    assert copies.kept
    assert held_out.num_removed == 1
    assert held_out.chart is not None
    assert held_out.chart.num == 9
    assert held_out.removed[0].witness_id == "e" * 64
    assert copies.chart is not None
    assert copies.chart.num == 9


def test_dedup_that_removed_nothing_shows_what_it_kept(outputs: Outputs, tmp_path: Path) -> None:
    shutil.copytree(outputs.data, tmp_path / "data")
    write_table(tmp_path / "data/dedup/removed.parquet", REMOVED, [])
    page = inspection_page(params(), outputs._replace(data=tmp_path / "data").folders, outputs.store)
    assert "0 images were removed at a cosine of 0.995 or more" in page
    assert "No sampled pair that was removed lies near the threshold" in page


def test_page_stands_alone_and_is_the_same_again(outputs: Outputs) -> None:
    pages = [inspection_page(params(), outputs.folders, outputs.store) for _ in range(2)]
    assert pages[0] == pages[1]
    assert not re.search(r"""(src|href)=["']?http""", pages[0])
    for text in ("filter: too small", "1 of them, 10 % of what it was given", "0.995: kept above this line"):
        assert text in pages[0]


def test_what_was_never_fetched_is_shown_by_its_url(outputs: Outputs) -> None:
    page = inspection_page(params(), outputs.folders, outputs.store)
    for text in ("crawl: refused domain", "https://bad.example/x.jpg", "download: tdm header", "https://b.example/gone"):
        assert text in page
    assert "duplicate bytes" not in page  # two that look the same


def test_removals_of_embed_and_of_seeds_are_shown(outputs: Outputs, tmp_path: Path) -> None:
    shutil.copytree(outputs.data, tmp_path / "data")
    torn = {"id": None, "url": "label/torn.jpg", "reason": "undecodable"}
    write_table(tmp_path / "data/embed/removed/evaluation.parquet", REMOVED, [torn])
    copied = {"id": outputs.ids["s1"], "reason": "evaluation_copy:held_out", "witness_id": outputs.ids["e0"]}
    write_table(tmp_path / "data/dedup/seeds_removed.parquet", REMOVED, [{**copied, "url": "u"}])
    page = inspection_page(params(), outputs._replace(data=tmp_path / "data").folders, outputs.store)
    for text in ("embed, evaluation: undecodable", "label/torn.jpg", "dedup, seeds: evaluation copy:held out"):
        assert text in page


def test_evaluation_images_are_shown_beside_their_copies(outputs: Outputs, tmp_path: Path) -> None:
    (tmp_path / "label").mkdir()
    (tmp_path / "label/e0.jpg").write_bytes(picture(77))
    without = inspection_page(params(), outputs.folders, outputs.store)
    page = inspection_page(params(), outputs.folders, outputs.store, folders=(tmp_path,))
    title = f'title="{outputs.ids["e0"]}"'
    assert f"<span class=\"absent\" {title}>" in without
    assert f"<span class=\"absent\" {title}>" not in page
    assert re.search(f"<img src='data:image/jpeg;base64,[^']+' alt=\"\" {title}>", page)


def test_stage_without_output_is_left_out_by_name(outputs: Outputs) -> None:
    folders = {name: path for name, path in outputs.folders.items() if name != "retrieve"}
    page = inspection_page(params(), folders, outputs.store)
    assert "no output of: retrieve" in page
    assert "Copies of evaluation images: held_out" in page
    with pytest.raises(InputError, match="no stage's output"):
        inspection_page(params(), {}, outputs.store)


def test_image_whose_shard_is_gone_is_shown_as_absent(outputs: Outputs, tmp_path: Path) -> None:
    shutil.copytree(outputs.data, tmp_path / "data")
    shutil.copytree(outputs.store.root, tmp_path / "store")
    for shard in (tmp_path / "store").rglob("*.tar"):
        shard.unlink()
    store = type(outputs.store)(outputs.store.params.model_copy(update={"url": str(tmp_path / "store")}))
    page = inspection_page(params(), Outputs(tmp_path / "data", store, {}).folders, store)
    assert "data:image/jpeg" not in page
    assert "no bytes kept" in page


def test_sample_of_a_reason_depends_on_the_seed_alone(tmp_path: Path) -> None:
    table = tmp_path / "removed.parquet"
    rows = [{"id": f"{i:064d}", "reason": "a" if i % 3 else "b"} for i in range(3000)]
    write_table(table, REMOVED, rows)
    first, again, other = (sample_by(table, "reason", 5, seed) for seed in (0, 0, 1))
    assert first == again != other
    assert {reason: (num, len(some)) for reason, (num, some) in first.items()} == {"a": (2000, 5), "b": (1000, 5)}
    assert [row["id"] for row in rows_at(table, [7, 2999])] == [rows[7]["id"], rows[2999]["id"]]


def test_first_rows_of_a_reason_are_those_of_least_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = tmp_path / "removed.parquet"
    monkeypatch.setattr(lookup, "BATCH_ROWS", 7)
    rows = [{"id": f"{i * 37 % 100:064d}", "reason": "a" if i % 3 else "b"} for i in range(100)]
    write_table(table, REMOVED, [*rows, {"id": None, "reason": "a"}])
    found = first_by_id(table, "reason", 5, ds.field("id").is_valid())
    for reason, num in (("a", 66), ("b", 34)):
        ids = sorted(row["id"] for row in rows if row["reason"] == reason)
        assert found[reason][0] == num
        assert [row["id"] for row in found[reason][1]] == ids[:5]


def test_command_writes_the_page(outputs: Outputs, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "params.yaml"
    store = f"store: {{url: '{outputs.store.params.url}', cache: cache, remote: null}}\n"
    values = ", ".join(f"{name}: {value}" for name, value in params().model_dump().items())
    file.write_text(f"{store}retrieve: {{inspect: {{{values}}}}}\ninputs: {{evaluation: nowhere}}\n")
    arguments = ["--params", str(file), "--out", str(tmp_path / "page.html"), "--data"]
    assert main([*arguments, str(outputs.data)]) == 0
    assert "Curation, looked at" in (tmp_path / "page.html").read_text()
    assert main([*arguments, str(tmp_path / "nothing")]) == 2
    assert capsys.readouterr().err.startswith("inspect: there is no stage's output")
