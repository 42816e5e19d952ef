"""The dedup stage: what it finds, by every method, from any division of the work, and what it refuses."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import tasks.dedup
from dinov2.curation.descriptors import EMBEDDED, store_block
from dinov2.params import InputError, validate
from dinov2.records import MANIFEST, REMOVED, Summary, read_table, write_json, write_table
from dinov2.store import Store, StoreParams
from tasks.dedup import DedupParams
from tasks.fan_out import make_parts
from tasks.hashing import hash_tree

DIMS, NUM_SEEDS, NUM_POOL = 64, 20, 600
COPIES = {5: 200, 17: 200, 300: 301, 599: 0}  # of the pool, by place in it
VALUES: dict[str, Any] = {
    "min_cosine": 0.6,
    "evaluation_sets": {"birds": {"folder": "birds", "min_cosine": 0.45}, "rest": {"folder": "", "min_cosine": 0.7}},
    "method": "exact", "min_recall": 0.9, "sample_rows": 300, "seed": 0, "block_rows": 130, "device": "cpu",
    "precision": "fp32", "warn_component_share": 0.5,
}  # fmt: skip


def near(vector: NDArray[np.float64], cosine: float, rng: np.random.Generator) -> NDArray[np.float64]:
    """A direction with that cosine to `vector`."""
    noise = rng.standard_normal(DIMS)
    noise -= noise @ vector * vector
    return cosine * vector + np.sqrt(1 - cosine**2) * noise / np.linalg.norm(noise)


def params(**changes: Any) -> DedupParams:
    return validate(DedupParams, VALUES | changes, where="params.yaml: dedup")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(StoreParams(url=str(tmp_path / "store"), cache=str(tmp_path / "cache"), remote=None))


@pytest.fixture
def sets() -> dict[str, NDArray[np.float64]]:
    """Descriptors: copies in the pool, of a seed (number 400), and of evaluation images (500 and 501)."""
    rng = np.random.default_rng(0)
    drawn = {name: rng.standard_normal((num, DIMS)) for name, num in
             (("seeds", NUM_SEEDS), ("pool", NUM_POOL), ("evaluation", 10))}
    drawn = {name: rows / np.linalg.norm(rows, axis=1, keepdims=True) for name, rows in drawn.items()}
    for copy, original in COPIES.items():
        drawn["pool"][copy] = near(drawn["pool"][original], 0.9, rng)
    drawn["pool"][400] = near(drawn["seeds"][3], 0.8, rng)
    drawn["pool"][500] = near(drawn["evaluation"][1], 0.6, rng)  # birds: above its 0.45
    drawn["pool"][501] = near(drawn["evaluation"][8], 0.6, rng)  # rest: below its 0.7
    drawn["pool"][502] = near(drawn["evaluation"][9], 0.75, rng)
    return drawn


def rows_of(name: str, num: int) -> list[dict[str, Any]]:
    """Image n of a set; larger numbers are larger images."""
    rows = []
    for number in range(num):
        path = None if name == "pool" else f"{'birds' if number < 5 else 'cats'}/{number}.jpg"
        known = {"id": f"{name}{number:04d}", "width": 100 + number, "height": 100, "url": f"http://a/{number}"}
        rows.append({**dict.fromkeys(EMBEDDED.names), **known, "path": path})
    return rows


def write(folder: Path, sets: dict[str, NDArray[np.float64]], store: Store, **tables: Any) -> dict[str, Path]:
    """The inputs of the stage; each set's descriptors in blocks of 256."""
    folder.mkdir(exist_ok=True)
    index = {}
    for name, vectors in sets.items():
        rows = tables.get(name) or rows_of(name, len(vectors))
        write_table(folder / "embed" / f"{name}.parquet", EMBEDDED, rows)
        blocks = [vectors[start : start + 256] for start in range(0, len(vectors), 256)]
        index[name] = {"copy": [store_block(store, folder, block) for block in blocks]}
        if name == "pool":
            write_table(folder / "filter" / "manifest.parquet", MANIFEST, rows)
    write_json(folder / "embed" / "embeddings.json", index)
    return {"filter": folder / "filter", "embed": folder / "embed"}


def dedup(root: Path, inputs: dict[str, Path], store: Store, chosen: DedupParams, workers: int = 1) -> Summary:
    """All phases, shared by workers, then `run`; the output is `root`/out."""
    values = {"params": chosen, **inputs, "work": root / "work", "store": store}
    for phase in tasks.dedup.PHASES:
        for worker in reversed(range(workers)):
            make_parts(phase, values, first=worker, of=workers)
    return tasks.dedup.run(chosen, **inputs, out=root / "out", work=root / "work", store=store)


@pytest.fixture
def inputs(tmp_path: Path, sets: dict[str, NDArray[np.float64]], store: Store) -> dict[str, Path]:
    return write(tmp_path / "inputs", sets, store)


def removed(root: Path) -> dict[str, tuple[str, str]]:
    rows = read_table(root / "out" / "removed.parquet", REMOVED)
    return {row["id"]: (row["reason"], row["witness_id"]) for row in rows}


EXPECTED = {
    "pool0005": ("copy", "pool0200"),
    "pool0017": ("copy", "pool0200"),
    "pool0300": ("copy", "pool0301"),
    "pool0000": ("copy", "pool0599"),
    "pool0400": ("copy", "seeds0003"),
    "pool0500": ("evaluation_copy:birds", "evaluation0001"),
    "pool0502": ("evaluation_copy:rest", "evaluation0009"),
}


@pytest.mark.parametrize("method", ["exact", "auto", "rotation", "cells", "faiss"])
def test_every_method_removes_what_was_planted(
    tmp_path: Path, inputs: dict[str, Path], store: Store, method: str
) -> None:
    if method == "faiss":
        pytest.importorskip("faiss")
    summary = dedup(tmp_path, inputs, store, params(method=method, min_recall=0.5 if method == "cells" else 0.9))
    assert removed(tmp_path) == EXPECTED
    assert summary.num_in == NUM_POOL == summary.num_kept + sum(summary.dropped.values())
    assert summary.dropped == {"copy": 5, "evaluation_copy:birds": 1, "evaluation_copy:rest": 1}
    assert (summary.metrics["num_copies_of_birds"], summary.metrics["num_copies_of_rest"]) == (1, 1)
    assert summary.metrics["pair_recall"] == 1
    kept = [row["id"] for row in read_table(tmp_path / "out" / "manifest.parquet", MANIFEST)]
    assert kept == [f"pool{number:04d}" for number in range(NUM_POOL) if f"pool{number:04d}" not in EXPECTED]


@pytest.mark.parametrize("method", ["rotation", "cells"])
def test_workers_do_not_change_a_byte(tmp_path: Path, inputs: dict[str, Path], store: Store, method: str) -> None:
    chosen = params(method=method, min_recall=0.3)
    trees = []
    for workers in (1, 3):
        dedup(tmp_path / str(workers), inputs, store, chosen, workers)
        trees.append(hash_tree(tmp_path / str(workers) / "out"))
        assert list((tmp_path / str(workers) / "work" / "visits").glob("*")) != [] or method == "rotation"
    assert trees[0] == trees[1]
    dedup(tmp_path / "small", inputs, store, params(method=method, min_recall=0.3, block_rows=77))
    if method == "rotation":
        assert hash_tree(tmp_path / "small" / "out") == trees[0]


def test_killed_and_started_again_gives_the_same_bytes(tmp_path: Path, inputs: dict[str, Path], store: Store) -> None:
    chosen = params(method="rotation", block_rows=40)
    dedup(tmp_path / "whole", inputs, store, chosen)
    given = [tmp_path / "killed" / "work", store.root, chosen.model_dump_json(), inputs["filter"], inputs["embed"]]
    child = subprocess.Popen([sys.executable, "-c", CHILD, *map(str, given)])
    marks = tmp_path / "killed" / "work" / "made" / "join"
    deadline = time.monotonic() + 60
    while len(list(marks.glob("*"))) < 10 and child.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    assert 10 <= len(list(marks.glob("*"))) < 16 * 17 // 2
    dedup(tmp_path / "killed", inputs, store, chosen)
    assert hash_tree(tmp_path / "killed" / "out") == hash_tree(tmp_path / "whole" / "out")


CHILD = """
import json, sys
from pathlib import Path
import tasks.dedup
from dinov2.store import Store, StoreParams
from tasks.fan_out import make_parts
work, root, params, filter, embed = sys.argv[1:]
values = {"params": tasks.dedup.DedupParams.model_validate_json(params), "filter": Path(filter), "embed": Path(embed),
          "work": Path(work), "store": Store(StoreParams(url=root, cache=root, remote=None))}
for phase in tasks.dedup.PHASES:
    make_parts(phase, values, first=0, of=1)
"""


def test_bad_descriptors_are_dropped_and_listed(
    tmp_path: Path, sets: dict[str, NDArray[np.float64]], store: Store
) -> None:
    sets["pool"][7], sets["pool"][301] = np.nan, 0.5
    sets["seeds"][4, 0] = np.inf
    summary = dedup(tmp_path, write(tmp_path / "inputs", sets, store), store, params(method="rotation"))
    found = removed(tmp_path)
    assert found["pool0007"] == found["pool0301"] == ("bad_descriptor", None)
    assert "pool0300" not in found
    assert summary.dropped["bad_descriptor"] == 2
    assert summary.num_in == NUM_POOL == summary.num_kept + sum(summary.dropped.values())
    seeds = read_table(tmp_path / "out" / "seeds_removed.parquet", REMOVED)
    assert [(row["id"], row["reason"]) for row in seeds] == [("seeds0004", "bad_descriptor")]


def test_an_id_that_comes_twice_stays_once(
    tmp_path: Path, sets: dict[str, NDArray[np.float64]], store: Store
) -> None:
    rows = rows_of("pool", NUM_POOL)
    rows[250], sets["pool"][250] = rows[249], sets["pool"][249]
    inputs = write(tmp_path / "inputs", sets, store, pool=rows)
    summary = dedup(tmp_path, inputs, store, params())
    assert removed(tmp_path)["pool0249"] == ("duplicate_id", "pool0249")
    assert summary.dropped["duplicate_id"] == 1
    kept = [row["id"] for row in read_table(tmp_path / "out" / "manifest.parquet", MANIFEST)]
    assert kept.count("pool0249") == 1


def test_a_method_that_misses_too_many_pairs_gives_way_to_the_exact_join(
    tmp_path: Path, inputs: dict[str, Path], store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    summary = dedup(tmp_path, inputs, store, params(method="cells", min_recall=0.99))  # too few pairs to be sure of
    assert "the join is exact" in caplog.text
    assert removed(tmp_path) == EXPECTED
    assert summary.metrics["pair_recall"] == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"min_cosine": 1.5}, "min_cosine"),
        ({"min_cosine": 0.0}, "min_cosine"),
        ({"min_recall": 0.0}, "min_recall"),
        ({"evaluation_sets": {"a": {"folder": "", "min_cosine": 1.01}}}, r"evaluation_sets\.a\.min_cosine"),
        ({"evaluation_sets": {"../a": {"folder": "", "min_cosine": 0.5}}}, "evaluation_sets"),
    ],
)
def test_values_out_of_range_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        params(**changes)


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        ({"birds": "birds"}, "cats/5.jpg is in none of dedup.evaluation_sets"),
        ({"rest": "", "dogs": "dogs"}, "dedup.evaluation_sets.dogs has no image"),
        ({"rest": "", "birds": "bird"}, "dedup.evaluation_sets.birds has no image"),
    ],
)
def test_evaluation_images_and_sets_that_do_not_meet_are_refused(
    tmp_path: Path, inputs: dict[str, Path], store: Store, folders: dict[str, str], message: str
) -> None:
    chosen = params(evaluation_sets={name: {"folder": folder, "min_cosine": 0.5} for name, folder in folders.items()})
    with pytest.raises(InputError, match=message):
        dedup(tmp_path, inputs, store, chosen)


def test_an_evaluation_image_without_a_descriptor_is_refused(
    tmp_path: Path, sets: dict[str, NDArray[np.float64]], store: Store
) -> None:
    sets["evaluation"][6] = np.nan
    with pytest.raises(InputError, match="evaluation image 6 is NaN"):
        dedup(tmp_path, write(tmp_path / "inputs", sets, store), store, params())


def test_a_pool_that_the_filter_does_not_have_is_refused(
    tmp_path: Path, inputs: dict[str, Path], store: Store
) -> None:
    write_table(inputs["filter"] / "manifest.parquet", MANIFEST, rows_of("pool", NUM_POOL - 1))
    with pytest.raises(InputError, match=f"the first: pool{NUM_POOL - 1:04d}"):
        dedup(tmp_path, inputs, store, params())


def test_descriptors_and_images_of_different_number_are_refused(
    tmp_path: Path, inputs: dict[str, Path], store: Store
) -> None:
    write_table(inputs["embed"] / "pool.parquet", EMBEDDED, rows_of("pool", NUM_POOL - 1))
    with pytest.raises(InputError, match="620 copy descriptors for 619 images"):
        dedup(tmp_path, inputs, store, params())


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("embed/pool.parquet", None, "pool.parquet does not exist"),
        ("embed/evaluation.parquet", b"PAR1 cut short", "evaluation.parquet is not a readable Parquet file"),
        ("embed/embeddings.json", b"{}", "does not list copy descriptors"),
    ],
)
def test_inputs_that_are_absent_or_damaged_are_refused(  # noqa: PLR0917
    tmp_path: Path, inputs: dict[str, Path], store: Store, name: str, content: bytes | None, message: str
) -> None:
    path = tmp_path / "inputs" / name
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        dedup(tmp_path, inputs, store, params())


def test_tables_of_another_schema_are_refused(tmp_path: Path, inputs: dict[str, Path], store: Store) -> None:
    write_table(inputs["embed"] / "pool.parquet", REMOVED, [dict.fromkeys(REMOVED.names)] * NUM_POOL)
    with pytest.raises(InputError, match="no column"):
        dedup(tmp_path, inputs, store, params())
