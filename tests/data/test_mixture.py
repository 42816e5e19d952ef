"""Several sources by weight: shares, no repetition within a pass, 10^9 images, and what is refused."""

from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dinov2.data.mixture import CYCLE, Mixture, Part, index_at, open_sources
from dinov2.data.order import sample_index
from dinov2.data.sources import FolderSource, ShardSource
from dinov2.params import InputError, read_yaml, validate
from dinov2.records import CURATED, write_json, write_table
from dinov2.shards import ShardWriter
from dinov2.store import Store, StoreParams
from tasks.pretrain import PretrainParams


class Numbers:
    """`length` images that are their numbers."""

    def __init__(self, length: int, name: str = "") -> None:
        self.length = length
        self.name = name

    def __len__(self) -> int:
        return self.length

    def read(self, i: int) -> bytes:
        return str(i).encode()

    def id(self, i: int) -> str:
        return str(i)

    def label(self, i: int) -> str | None:
        return str(i % 2)

    def fingerprint(self) -> str:
        return f"{self.name} {self.length}"


def mixture(*lengths_and_weights: tuple[int, float]) -> Mixture:
    return Mixture([Part(f"s{n}", Numbers(length), weight) for n, (length, weight) in enumerate(lengths_and_weights)])


def test_mixture_is_its_sources_after_one_another() -> None:
    mixed = mixture((3, 1.0), (4, 1.0))
    assert len(mixed) == 7
    assert [mixed.id(i) for i in (0, 2, 3, 6)] == ["s0: 0", "s0: 2", "s1: 0", "s1: 3"]
    assert mixed.read(5) == b"2"
    assert mixed.label(4) == "1"
    assert mixed.part_of(3).name == "s1"


def test_mixture_draws_by_weight_not_by_size() -> None:
    mixed = mixture((5, 3.0), (10**6, 1.0))
    drawn = Counter(mixed.index_at(1, position, later=0) < 5 for position in range(CYCLE))
    assert drawn == {True: 0.75 * CYCLE, False: 0.25 * CYCLE}
    for start in range(0, CYCLE, 1024):  # every batch has its share
        some = sum(mixed.index_at(1, position, later=0) < 5 for position in range(start, start + 64))
        assert abs(some - 48) <= 2


def test_mixture_repeats_no_sample_before_its_pass_is_over() -> None:
    mixed = mixture((700, 2.0), (333, 1.0), (5_678, 4.5))
    orders: list[list[int]] = [[], [], []]
    for position in range(CYCLE + CYCLE // 4):
        index = mixed.index_at(9, position, later=0)
        orders[int(mixed.part_of(index).name[1])].append(index)
    for number, order in enumerate(orders):
        length = len(mixed.parts[number].source)
        for start in range(0, len(order), length):
            one_pass = order[start : start + length]
            assert len(set(one_pass)) == len(one_pass)
            if len(one_pass) == length:
                assert sorted(index - min(one_pass) for index in one_pass) == list(range(length))


def test_mixture_later_goes_on_in_the_same_source() -> None:
    mixed = mixture((20, 1.0), (20, 1.0))
    positions = [p for p in range(100) if mixed.index_at(2, p, later=0) >= 20]
    for here, following in zip(positions, islice(positions, 1, None), strict=False):
        assert mixed.index_at(2, here, later=1) == mixed.index_at(2, following, later=0)


def test_mixture_of_sources_of_one_length_walks_each_in_its_own_order() -> None:
    mixed = mixture((1000, 1.0), (1000, 1.0))
    first = [mixed.index_at(2, position, later=0) for position in range(0, 400, 2)]
    second = [mixed.index_at(2, position, later=0) - 1000 for position in range(1, 400, 2)]
    assert first != second


def test_index_at_of_one_source_is_its_permutation() -> None:
    for position in (0, 5, 123_456):
        assert index_at(Numbers(77), 4, position, later=2) == sample_index(4, position + 2, 77)


def test_mixture_of_many_images_costs_nothing() -> None:
    mixed = mixture((10**9, 1.0), (3 * 10**9, 5.0))
    assert len(mixed) == 4 * 10**9
    indices = [mixed.index_at(0, position, later=0) for position in range(10**12, 10**12 + 1000)]
    assert len(set(indices)) == 1000
    assert all(0 <= index < 4 * 10**9 for index in indices)


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan")])
def test_mixture_refuses_a_weight_that_is_not_above_0(weight: float) -> None:
    with pytest.raises(InputError, match="source s1 has weight"):
        mixture((3, 1.0), (3, weight))


def test_mixture_refuses_a_weight_that_never_comes_up() -> None:
    with pytest.raises(InputError, match="less than one in 10000"):
        mixture((3, 1.0), (3, 1e-6))


def test_mixture_fingerprint_is_of_names_weights_and_sources() -> None:
    def fingerprint(name: str, weight: float, length: int) -> str:
        return Mixture([Part(name, Numbers(length), weight), Part("b", Numbers(2), 1.0)]).fingerprint()

    assert len({fingerprint(*case) for case in (("a", 1.0, 3), ("c", 1.0, 3), ("a", 2.0, 3), ("a", 1.0, 4))}) == 4


@pytest.fixture
def tiny_values(repository: Path) -> dict[str, Any]:
    """The section `pretrain` of the tests' params."""
    values: Any = read_yaml(repository / "tests/tiny.yaml")
    return values["pretrain"]


def opened(tmp_path: Path, sources: list[dict[str, Any]], values: dict[str, Any]) -> Any:
    params = validate(PretrainParams, {**values, "sources": sources}, where="pretrain")
    store = Store(StoreParams(url=str(tmp_path / "store"), cache=str(tmp_path / "cache"), remote=None))
    return open_sources(params.sources, retrieve=tmp_path / "retrieve", store=store)


def test_open_sources_mixes_all_kinds(tmp_path: Path, tiny_values: dict[str, Any]) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a/1.jpg").write_bytes(b"one")
    (tmp_path / "list.txt").write_text("a/1.jpg\tone\n")
    pq.write_table(pa.table({"image": [b"two"]}), tmp_path / "b.parquet")
    folder = {"kind": "folder", "path": str(tmp_path), "weight": 1.0}
    assert isinstance(opened(tmp_path, [folder], tiny_values), FolderSource)
    listed = {"kind": "list", "path": str(tmp_path / "list.txt"), "weight": 2.0}
    rows = {"kind": "parquet", "path": str(tmp_path / "b.parquet"), "image_column": "image", "label_column": None}
    mixed = opened(tmp_path, [folder, listed, {**rows, "weight": 1.0}], tiny_values)
    assert [mixed.read(i) for i in range(3)] == [b"one", b"one", b"two"]
    assert mixed.label(1) == "one"
    assert mixed.id(0) == f"folder {tmp_path}: a/1.jpg"


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ({"kind": "folder", "path": "x", "weight": 0.0}, "greater than 0"),
        ({"kind": "folder", "path": None, "weight": 1.0}, "valid string"),
        ({"kind": "folder", "path": "x", "weight": 1.0, "image_column": "y"}, "is not a known key"),
        ({"kind": "zip", "path": "x", "weight": 1.0}, "does not match any of the expected tags"),
        ({"kind": "curated", "path": None, "weight": 1.0}, "run the stage that makes it"),
    ],
)
def test_open_sources_refuses(tmp_path: Path, tiny_values: dict[str, Any], source: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        opened(tmp_path, [source], tiny_values)


def test_open_sources_wants_one(tmp_path: Path, tiny_values: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="at least 1 item"):
        opened(tmp_path, [], tiny_values)


def test_open_sources_divides_a_curated_set_by_its_own_mixture(tmp_path: Path, tiny_values: dict[str, Any]) -> None:
    """Half from a folder; of the other half two thirds from cats, whatever the numbers of images."""
    store = Store(StoreParams(url=str(tmp_path / "store"), cache=str(tmp_path / "cache"), remote=None))
    with ShardWriter(store, tmp_path / "packing", shard_mb=1) as writer:
        for number in range(8):
            writer.add(b"%d" % number, {"mime": "image/png", "source": ("cat", "dog", None)[min(number, 2)]})
    write_table(tmp_path / "retrieve/manifest.parquet", CURATED, writer.rows)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/1.jpg").write_bytes(b"folder")
    folder = {"kind": "folder", "path": str(tmp_path / "folder"), "weight": 1.0}
    curated = {"kind": "curated", "path": None, "weight": 1.0}
    assert isinstance(opened(tmp_path, [curated], tiny_values), ShardSource)
    write_json(tmp_path / "retrieve/mixture.json", {"cat": 4.0, "others": 2.0})
    mixed = opened(tmp_path, [folder, curated], tiny_values)
    drawn = Counter(mixed.read(mixed.index_at(0, position, later=0)) for position in range(CYCLE))
    assert (drawn[b"folder"], drawn[b"0"]) == (5000, 3333)
    assert set(drawn) == {b"folder", *(b"%d" % number for number in range(8))}
