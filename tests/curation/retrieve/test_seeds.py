"""Retrieval: who brings in what, by which rule; and the stage with its shards, manifest and page."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import ranks
import torch
from numpy.typing import NDArray
from PIL import Image

from dinov2 import tables
from dinov2.curation.descriptors import EMBEDDED, store_block
from dinov2.curation.params import BalancedParams, ClusterParams, InspectParams, SeededParams
from dinov2.curation.retrieve import blocks, packing
from dinov2.curation.retrieve import seeds as searching
from dinov2.curation.retrieve.blocks import InMemory, unit
from dinov2.curation.retrieve.seeds import Choices, Seeds, retrieve, strategies
from dinov2.data.mixture import CYCLE, index_at, open_curated
from dinov2.params import InputError, validate
from dinov2.records import CURATED, MANIFEST, REMOVED, read_table, write_json, write_table
from dinov2.shards import ShardReader, ShardWriter
from dinov2.store import Store, StoreParams
from tasks.retrieve import RetrieveParams, run

CPU = torch.device("cpu")


def on_circle(*degrees: float) -> NDArray[np.float32]:
    radians = np.radians(degrees)
    return np.stack([np.cos(radians), np.sin(radians)], axis=1).astype(np.float32)


def params(**changes: int | float | None) -> SeededParams:
    values = {
        "kind": "seeds", "sample_based_from": 2, "num_neighbors": 2, "num_from_cluster": 3, "min_cosine": 0.0,
        "max_per_source": None,
    }  # fmt: skip
    return SeededParams.model_validate(values | changes)


def choose(asked: SeededParams, sources: Sequence[str | None]) -> Choices:
    """Seeds at 0, 40 and 200 degrees; the pool's last three images are in cluster 1, as is the last seed."""
    return retrieve(
        asked, seeds=Seeds(InMemory(on_circle(0, 40, 200)), sources, np.array([0, 0, 1], np.int32)),
        pool=InMemory(on_circle(1, 15, 30, 90, 190, 203, 215)), pool_clusters=np.array([0, 0, 0, 0, 1, 1, 1], np.int32),
        device=CPU,
    )  # fmt: skip


def test_retrieve_takes_n_neighbours_of_each_seed_of_a_large_label() -> None:
    choices = choose(params(), ["cat", "cat", "cat"])
    np.testing.assert_array_equal(choices.pool, [0, 1, 2, 4, 5])
    np.testing.assert_array_equal(choices.seed, [0, 0, 1, 2, 2])
    assert not choices.by_cluster.any()
    np.testing.assert_allclose(choices.cosine, np.cos(np.radians([1, 15, 10, 10, 3])), atol=1e-5)


def test_retrieve_takes_m_of_the_cluster_for_a_small_label() -> None:
    choices = choose(params(), ["cat", "cat", "dog"])
    np.testing.assert_array_equal(choices.pool[choices.by_cluster], [4, 5, 6])
    nearest = choose(params(num_from_cluster=1), ["cat", "cat", "dog"])
    np.testing.assert_array_equal(nearest.pool[nearest.by_cluster], [5])


def test_retrieve_gives_an_image_to_its_most_similar_seed() -> None:
    choices = choose(params(num_neighbors=4), ["cat", "cat", "cat"])
    owner = dict(zip(choices.pool.tolist(), choices.seed.tolist(), strict=True))
    assert len(owner) == len(choices.pool)
    assert [owner[image] for image in (0, 1, 2, 3)] == [0, 0, 1, 1]


def test_retrieve_leaves_out_what_is_not_similar() -> None:
    assert choose(params(min_cosine=0.99), ["cat", "cat", "cat"]).pool.tolist() == [0, 5]


def test_retrieve_limits_a_source_to_its_most_similar() -> None:
    choices = choose(params(max_per_source=2), ["cat", "cat", "cat"])
    np.testing.assert_array_equal(choices.pool, [0, 5])
    np.testing.assert_array_equal(choices.over_quota, [1, 2, 4])


def test_strategies_follow_the_number_of_seeds() -> None:
    assert strategies(["a", "b", "a", None], 2) == {None: "cluster", "a": "sample", "b": "cluster"}


@pytest.mark.parametrize("block_rows", [1, 2, 3])
def test_retrieve_is_the_same_in_any_blocks(monkeypatch: pytest.MonkeyPatch, block_rows: int) -> None:
    sources = ["cat", "cat", "dog"]
    whole = choose(params(), sources)
    monkeypatch.setattr(blocks, "BLOCK_ROWS", block_rows)
    for column, other in zip(whole, choose(params(), sources), strict=True):
        np.testing.assert_array_equal(column, other)


@pytest.mark.parametrize(("piece", "few"), [(1, 0), (20, 5), (2**22, 0)])
def test_retrieve_is_that_of_all_pairs_whatever_is_held_at_a_time(
    monkeypatch: pytest.MonkeyPatch, piece: int, few: int
) -> None:
    """Against the rules written down plainly; half of the vectors stand twice, so that there are equals."""
    rng = np.random.default_rng(0)
    few_vectors = unit(rng.standard_normal((60, 4)).astype(np.float16))
    pool, given = few_vectors[rng.integers(0, 60, 200)], few_vectors[rng.integers(0, 60, 25)]
    homes, seed_homes = rng.integers(0, 4, 200).astype(np.int32), rng.integers(0, 4, 25).astype(np.int32)
    sources = ["many"] * 12 + [f"few {number // 2}" for number in range(13)]
    monkeypatch.setattr(blocks, "BLOCK_ROWS", 16)
    monkeypatch.setattr(searching, "PIECE", piece)
    monkeypatch.setattr(searching, "FEW", few)
    asked = params(sample_based_from=5, num_neighbors=4, num_from_cluster=9, min_cosine=0.3)
    found = retrieve(
        asked, seeds=Seeds(InMemory(given), sources, seed_homes), pool=InMemory(pool), pool_clusters=homes, device=CPU
    )
    best: dict[int, tuple[float, int]] = {}
    cosines = (given.astype(np.float64) @ pool.T.astype(np.float64)).astype(np.float32)
    for seed, cosine in enumerate(cosines):
        inside = np.arange(200) if seed < 12 else np.flatnonzero(homes == seed_homes[seed])
        nearest = inside[np.argsort(-cosine[inside], kind="stable")][: 4 if seed < 12 else 9]
        for image in nearest[cosine[nearest] >= 0.3].tolist():
            best[image] = min(best.get(image, (0.0, seed)), (-float(cosine[image]), seed))
    assert found.pool.tolist() == sorted(best)
    assert found.seed.tolist() == [best[image][1] for image in sorted(best)]
    np.testing.assert_allclose(found.cosine, [-best[image][0] for image in sorted(best)], atol=1e-6)


def test_retrieve_is_the_same_in_any_number_of_processes(tmp_path: Path) -> None:
    """Of three, the last has no block of the pool."""
    code = """
import numpy as np
from dinov2.curation.params import SeededParams
from dinov2.curation.retrieve import blocks, seeds
blocks.BLOCK_ROWS = 100
given = np.load(work / "given.npz")
params = SeededParams(
    kind="seeds", sample_based_from=5, num_neighbors=4, num_from_cluster=9, min_cosine=0.3, max_per_source=30
)
sources = ["many"] * 12 + ["few"] * 3 + [None] * 10
found = seeds.retrieve(
    params, seeds=seeds.Seeds(blocks.InMemory(given["seeds"]), sources, given["seed_homes"]),
    pool=blocks.InMemory(given["pool"]), pool_clusters=given["homes"], device=torch.device("cpu"),
)
np.savez(work / f"{world_size()}-{rank()}.npz", **found._asdict())
"""
    rng = np.random.default_rng(1)
    few = unit(rng.standard_normal((60, 4)).astype(np.float16))
    np.savez(
        tmp_path / "given.npz", pool=few[rng.integers(0, 60, 200)], seeds=few[rng.integers(0, 60, 25)],
        homes=rng.integers(0, 4, 200).astype(np.int32), seed_homes=rng.integers(0, 4, 25).astype(np.int32),
    )  # fmt: skip
    for num in (1, 3):
        for exit_code, said in ranks.finish(ranks.start(code, num, tmp_path)):
            assert exit_code == 0, said
    alone = np.load(tmp_path / "1-0.npz")
    assert len(alone["pool"]) > 30
    assert len(alone["over_quota"]) > 0
    for rank in range(3):
        found = np.load(tmp_path / f"3-{rank}.npz")
        for name in alone.files:
            np.testing.assert_array_equal(found[name], alone[name])


# ---- the stage ----


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(StoreParams(url=str(tmp_path / "store"), cache=str(tmp_path / "cache"), remote=None))


@pytest.fixture
def inputs(tmp_path: Path, store: Store) -> dict[str, Path]:
    """Twelve pool images and three seeds, embedded; image 5 of the pool did not survive dedup."""
    rng = np.random.default_rng(0)
    rows = {}
    for name, num in (("pool", 12), ("seeds", 3)):
        with ShardWriter(store, tmp_path / "packing", shard_mb=1) as writer:
            for i in range(num):
                file = tmp_path / "image.png"
                Image.fromarray(rng.integers(0, 255, (20, 30, 3), np.uint8)).save(file)
                label = f"label {i}" if name == "seeds" else None
                row = {"mime": "image/png", "width": 30, "height": 20, "url": None, "page_url": None, "label": label}
                writer.add(file.read_bytes(), {**row, "path": f"{i}.png" if name == "seeds" else None})
        rows[name] = writer.rows
    embed, dedup = tmp_path / "embed", tmp_path / "dedup"
    blobs = {
        "pool": {"semantic": [store_block(store, tmp_path, on_circle(*range(0, 360, 30)))]},
        "seeds": {"semantic": [store_block(store, tmp_path, on_circle(5, 100, 270))]},
    }
    write_json(embed / "embeddings.json", blobs)
    for name in ("pool", "seeds"):
        write_table(embed / f"{name}.parquet", EMBEDDED, rows[name])
    unique = [{name: row.get(name) for name in MANIFEST.names} for i, row in enumerate(rows["pool"]) if i != 5]
    write_table(dedup / "manifest.parquet", MANIFEST, unique)
    write_table(dedup / "seeds.parquet", EMBEDDED, rows["seeds"])
    (tmp_path / "evaluation").mkdir()
    earlier = {name: tmp_path / name for name in ("crawl", "download", "filter")}
    for folder in earlier.values():
        write_table(folder / "manifest.parquet", MANIFEST, unique)
        write_table(folder / "removed.parquet", REMOVED, [])
    return {**earlier, "dedup": dedup, "embed": embed, "evaluation": tmp_path / "evaluation"}


def stage_params(**changes: int | float | None) -> RetrieveParams:
    return RetrieveParams(
        clusters=ClusterParams(seed=0, num_clusters=3, num_iterations=4, precision="fp32"),
        choose=params(sample_based_from=1, min_cosine=0.5, **changes),
        include_seeds=True,
        mixture={},
        shard_mb=1,
        inspect=InspectParams(
            num_seeds=2, num_neighbors=3, num_pairs=2, num_removed=0, num_sampled=8, max_rows=100, seed=0,
            thumbnail_px=32,
        ),
    )


def test_stage_writes_seeds_then_retrieved_and_accounts_for_all(
    tmp_path: Path, store: Store, inputs: dict[str, Path]
) -> None:
    summary = run(stage_params(), **inputs, out=tmp_path / "out", work=tmp_path / "work", store=store)
    rows = read_table(tmp_path / "out" / "manifest.parquet", CURATED)
    pool = read_table(inputs["dedup"] / "manifest.parquet", MANIFEST)
    seeds = read_table(inputs["dedup"] / "seeds.parquet", EMBEDDED)
    assert [row["origin"] for row in rows] == ["seed"] * 3 + ["sample"] * 6
    assert [row["label"] for row in rows] == ["label 0", "label 1", "label 2"] + [None] * 6
    # nearest two of 5 degrees: 0 and 30; of 100: 90 and 120; of 270: 270 and 240, the first of two equals
    assert [row["id"] for row in rows[3:]] == [pool[i]["id"] for i in (0, 1, 3, 4, 7, 8)]
    assert [row["seed_id"] for row in rows[3:]] == [seeds[i]["id"] for i in (0, 0, 1, 1, 2, 2)]
    removed = read_table(tmp_path / "out" / "removed.parquet", REMOVED)
    assert {row["id"] for row in removed} == {row["id"] for row in pool} - {row["id"] for row in rows}
    assert summary.num_in == 11 == summary.num_kept + sum(summary.dropped.values())
    assert summary.dropped == {"not_retrieved": 5}


def test_stage_packs_the_very_bytes_and_pins_the_shards(tmp_path: Path, store: Store, inputs: dict[str, Path]) -> None:
    run(stage_params(), **inputs, out=tmp_path / "out", work=tmp_path / "work", store=store)
    reader = ShardReader(store)
    old = {row["id"]: row for row in read_table(inputs["embed"] / "pool.parquet", MANIFEST)}
    rows = read_table(tmp_path / "out" / "manifest.parquet", CURATED)
    for row in rows[3:]:
        assert row["shard"] != old[row["id"]]["shard"]
        assert reader.read(row) == reader.read(old[row["id"]])
    reader.close()
    assert rows[0]["shard"] in (tmp_path / "out" / "blobs.json").read_text()


def test_stage_repeats_itself_byte_for_byte(tmp_path: Path, store: Store, inputs: dict[str, Path]) -> None:
    for name in ("a", "b"):
        run(stage_params(max_per_source=1), **inputs, out=tmp_path / name, work=tmp_path / f"work-{name}", store=store)
    for file in ("manifest.parquet", "removed.parquet", "inspect.html", "blobs.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_stage_is_the_same_in_any_pieces(
    tmp_path: Path, store: Store, inputs: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tables of several row groups, read two rows at a time, packed in many parts."""
    monkeypatch.setattr(packing, "SHARDS_A_PART", 2e-3)
    run(stage_params(max_per_source=1), **inputs, out=tmp_path / "a", work=tmp_path / "work-a", store=store)
    monkeypatch.setattr(tables, "BATCH_ROWS", 2)
    for name in ("manifest", "seeds"):
        table = pq.read_table(inputs["dedup"] / f"{name}.parquet")
        pq.write_table(table, inputs["dedup"] / f"{name}.parquet", row_group_size=3)
    run(stage_params(max_per_source=1), **inputs, out=tmp_path / "b", work=tmp_path / "work-b", store=store)
    assert len(list((tmp_path / "work-b" / "packed").glob("*.parquet"))) > 2
    for file in ("manifest.parquet", "removed.parquet", "blobs.json", "inspect.html"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    reasons = {row["reason"] for row in read_table(tmp_path / "b" / "removed.parquet", REMOVED)}
    assert reasons == {"not_retrieved", "source_full"}


def test_packing_parts_end_where_they_are_full() -> None:
    size = int(packing.SHARDS_A_PART) * 1_000_000
    assert packing.packing_parts([size - 1, 1, size, 5, 6], shard_mb=1) == [range(2), range(2, 3), range(3, 5)]
    assert packing.packing_parts([size, size], shard_mb=1) == [range(1), range(1, 2)]
    assert packing.packing_parts([], shard_mb=1) == []


def test_stage_shows_seeds_and_neighbours_on_one_page(tmp_path: Path, store: Store, inputs: dict[str, Path]) -> None:
    run(stage_params(), **inputs, out=tmp_path / "out", work=tmp_path / "work", store=store)
    page = (tmp_path / "out" / "inspect.html").read_text()
    assert page.count("src='data:image/jpeg;base64,") == 2 * (1 + 3)
    assert "http" not in page
    assert "0.996" in page  # cosine of 5 degrees


def test_stage_refuses_descriptors_of_other_images(tmp_path: Path, store: Store, inputs: dict[str, Path]) -> None:
    rows = read_table(inputs["dedup"] / "manifest.parquet", MANIFEST)
    write_table(inputs["dedup"] / "manifest.parquet", MANIFEST, [*rows, {**rows[0], "id": "f" * 64}])
    with pytest.raises(InputError, match=r"no descriptors of some images of pool .*the first: ffff"):
        run(stage_params(), **inputs, out=tmp_path / "out", work=tmp_path / "work", store=store)


def changed(**values: object) -> RetrieveParams:
    """The stage's params with other values of its own."""
    return RetrieveParams.model_validate(stage_params().model_dump() | values)


BALANCED = BalancedParams(
    kind="balanced", coarser=[2], num_resamplings=1, num_resampled=2, num_images=4, pick="closest"
)


def test_stage_without_seeds_takes_a_balanced_sample(tmp_path: Path, store: Store, inputs: dict[str, Path]) -> None:
    write_table(inputs["dedup"] / "seeds.parquet", EMBEDDED, [])
    asked = changed(choose=BALANCED.model_dump())
    summary = run(asked, **inputs, out=tmp_path / "out", work=tmp_path / "work", store=store)
    rows = read_table(tmp_path / "out" / "manifest.parquet", CURATED)
    assert [row["origin"] for row in rows] == ["balanced"] * 4
    assert {row["seed_id"] for row in rows} == {None}
    assert summary.dropped == {"not_sampled": 7}
    assert summary.num_in == 11 == summary.num_kept + 7


def test_stage_by_seeds_refuses_none(tmp_path: Path, store: Store, inputs: dict[str, Path]) -> None:
    write_table(inputs["dedup"] / "seeds.parquet", EMBEDDED, [])
    with pytest.raises(InputError, match="11 pool images and 0 seeds"):
        run(stage_params(), **inputs, out=tmp_path / "out", work=tmp_path / "work", store=store)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 0.0, 3.0])
def test_stage_drops_bad_descriptors(tmp_path: Path, store: Store, inputs: dict[str, Path], bad: float) -> None:
    vectors = on_circle(*range(0, 360, 30))
    vectors[3] = bad
    seeds = on_circle(5, 100, 270)
    seeds[2] = bad
    names = {name: {"semantic": [store_block(store, tmp_path, rows)]} for name, rows in
             (("pool", vectors), ("seeds", seeds))}  # fmt: skip
    write_json(inputs["embed"] / "embeddings.json", names)
    summary = run(stage_params(), **inputs, out=tmp_path / "out", work=tmp_path / "work", store=store)
    removed = read_table(tmp_path / "out" / "removed.parquet", REMOVED)
    pool = read_table(inputs["dedup"] / "manifest.parquet", MANIFEST)
    assert [row["id"] for row in removed if row["reason"] == "bad_descriptor"] == [pool[3]["id"]]
    assert summary.num_in == 11 == summary.num_kept + sum(summary.dropped.values())
    assert summary.metrics["num_seeds"] == 2


def test_stage_records_sources_and_their_mixture(tmp_path: Path, store: Store, inputs: dict[str, Path]) -> None:
    asked = changed(mixture={"label 0": 3.0, "others": 1.0})
    run(asked, **inputs, out=tmp_path / "out", work=tmp_path / "work", store=store)
    rows = read_table(tmp_path / "out" / "manifest.parquet", CURATED)
    assert [row["source"] for row in rows] == [f"label {i}" for i in (0, 1, 2, 0, 0, 1, 1, 2, 2)]
    source = open_curated(tmp_path / "out", store)
    drawn = [source.id(index_at(source, 0, position, later=0)) for position in range(CYCLE)]
    own = {row["id"] for row in rows if row["source"] == "label 0"}
    assert sum(name.split(": ")[1] in own for name in drawn) == 0.75 * CYCLE


@pytest.mark.parametrize(("mixture", "said"), [
    ({"label 7": 1.0, "others": 1.0}, "weight for 'label 7', but no curated image"),
    ({"label 0": 1.0}, "no weight for label 1"),
    ({"label 0": 1.0, "label 1": 1.0, "label 2": 1.0, "others": 1.0}, "a weight for `others`; there are none"),
])  # fmt: skip
def test_stage_refuses_a_mixture_that_does_not_fit(
    tmp_path: Path, store: Store, inputs: dict[str, Path], mixture: dict[str, float], said: str
) -> None:
    with pytest.raises(InputError, match=said):
        run(changed(mixture=mixture), **inputs, out=tmp_path / "out", work=tmp_path / "work", store=store)


@pytest.mark.parametrize(("choose", "said"), [
    (stage_params().choose.model_dump() | {"min_cosine": 1.5}, "min_cosine"),
    (stage_params().choose.model_dump() | {"num_neighbors": 0}, "num_neighbors"),
    (BALANCED.model_dump() | {"coarser": [3]}, "levels have"),
    (BALANCED.model_dump() | {"num_images": 0}, "num_images"),
])  # fmt: skip
def test_stage_params_out_of_range_are_refused(choose: dict[str, object], said: str) -> None:
    with pytest.raises(InputError, match=said):
        validate(RetrieveParams, stage_params().model_dump(mode="json") | {"choose": choose}, where="params.yaml")


def test_stage_goes_on_after_a_kill_and_in_two_processes(
    tmp_path: Path, store: Store, inputs: dict[str, Path]
) -> None:
    """Packing is cut short in its second part; started again, now by two processes, the output is as without."""
    code = """
import dinov2.curation.retrieve.packing
from dinov2.store import Store, StoreParams
from tasks.retrieve import RetrieveParams, run
from dinov2.params import load_section
dinov2.curation.retrieve.packing.SHARDS_A_PART = 1e-9
params = load_section(work / "params.yaml", "retrieve", RetrieveParams)
store = Store(StoreParams(url=str(work / "store"), cache=str(work / "cache"), remote=None))
inputs = {name: work / name for name in ("crawl", "download", "filter", "dedup", "embed", "evaluation")}
run(params, **inputs, out=work / "out", work=work / "work", store=store)
"""
    (tmp_path / "params.yaml").write_text(json.dumps({"retrieve": stage_params().model_dump()}))
    (tmp_path / "out").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "SHARDS_A_PART", 1e-9)
        (tmp_path / "alone").mkdir()
        run(stage_params(), **inputs, out=tmp_path / "alone", work=tmp_path / "work-alone", store=store)
        parts = sorted((tmp_path / "work-alone" / "packed").glob("*.parquet"))
        assert len(parts) == 9
        (tmp_path / "work" / "packed").mkdir(parents=True)
        (tmp_path / "work" / "packed" / parts[0].name).write_bytes(parts[0].read_bytes())
    for exit_code, said in ranks.finish(ranks.start(code, 2, tmp_path)):
        assert exit_code == 0, said
    for file in ("manifest.parquet", "removed.parquet", "centroids.npy", "blobs.json", "inspect.html"):
        assert (tmp_path / "out" / file).read_bytes() == (tmp_path / "alone" / file).read_bytes()
