"""Batches depend on (seed, step) alone, not on ranks, threads or where a run starts; broken images are passed over."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dinov2.data.collate import BadSamples, Collator, RawBatch, finish, read_bad_samples
from dinov2.data.loader import Loader
from dinov2.data.mixture import Mixture, Part, index_at
from dinov2.data.order import sample_index
from dinov2.data.params import CropParams, MaskParams
from dinov2.data.sources import FolderSource, ShardSource, Source
from dinov2.params import InputError
from dinov2.shards import ShardReader, ShardWriter
from dinov2.store import Store, StoreParams

CROPS = CropParams(
    global_size_px=32, global_scale=(0.32, 1.0), local_size_px=16, local_scale=(0.05, 0.32), num_local=2,
    blur="reference", jitter_probability=0.8, brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1,
    grayscale_probability=0.2, solarize_probability=0.2,
)  # fmt: skip
MASKS = MaskParams(probability=0.5, ratio_min=0.1, ratio_max=0.5)


class Memory:
    """Ten small images in memory; those in `broken` are cut short, those in `strange` raise what nobody expects."""

    def __init__(self, broken: frozenset[int] = frozenset(), strange: frozenset[int] = frozenset()) -> None:
        self.broken = broken
        self.strange = strange

    def __len__(self) -> int:
        return 10

    def read(self, i: int) -> bytes:
        if i in self.strange:
            raise ZeroDivisionError("never seen before")
        buffer = io.BytesIO()
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(buffer, "PNG")
        return buffer.getvalue()[: 100 if i in self.broken else None]

    def id(self, i: int) -> str:
        return f"image {i}"

    def label(self, i: int) -> str | None:
        return None

    def fingerprint(self) -> str:
        return "ten"


def collator(tmp_path: Path, source: Source, *, rank: int = 0, world_size: int = 1) -> Collator:
    return Collator(
        source, CROPS, MASKS, seed=3, batch_size=8, group_size=4, patch_size=8, rank=rank, world_size=world_size,
        bad_samples=BadSamples(tmp_path / "bad.jsonl"),
    )  # fmt: skip


def test_collator_parts_of_two_ranks_are_the_whole(tmp_path: Path) -> None:
    whole = collator(tmp_path, Memory())(4)
    parts = [collator(tmp_path, Memory(), rank=rank, world_size=2)(4) for rank in range(2)]
    assert torch.equal(whole.global_crops, torch.cat([part.global_crops for part in parts], dim=1))
    assert torch.equal(whole.local_crops, torch.cat([part.local_crops for part in parts], dim=1))
    masks = [part.masks.view(2, 4, -1) for part in parts]
    assert torch.equal(whole.masks.view(2, 8, -1), torch.cat(masks, dim=1))
    assert whole.group_seeds == parts[0].group_seeds + parts[1].group_seeds
    first = [finish(part, torch.device("cpu")) for part in parts]
    globals_, locals_, _ = finish(whole, torch.device("cpu"))
    torch.testing.assert_close(globals_, torch.cat([part[0] for part in first], dim=1))
    torch.testing.assert_close(locals_, torch.cat([part[1] for part in first], dim=1))


def test_collator_refuses_groups_that_do_not_divide(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not divide into 3 processes"):
        collator(tmp_path, Memory(), world_size=3)


def test_collator_takes_the_next_image_for_a_broken_one(tmp_path: Path) -> None:
    position = next(p for p in range(8) if sample_index(3, p, 10) == 7)
    following = sample_index(3, position + 1, 10)
    make = collator(tmp_path, Memory(frozenset({7})))
    assert np.array_equal(make._image(0, position)[1], make._image(0, position + 1)[1])
    make(0)
    make(1)
    rows = read_bad_samples(tmp_path / "bad.jsonl")
    assert [row["id"] for row in rows] == ["image 7"]
    assert following != 7


def test_collator_replaces_a_broken_image_by_one_of_its_source(tmp_path: Path) -> None:
    mixture = Mixture([Part("whole", Memory(), 1.0), Part("broken", Memory(frozenset(range(9))), 1.0)])
    make = collator(tmp_path, mixture)
    for position in range(40):
        wanted = index_at(mixture, 3, position, later=0)
        index, _ = make._image(0, position)
        assert index == wanted if wanted < 10 else index == 19
    rows = read_bad_samples(tmp_path / "bad.jsonl")
    assert [row["id"] for row in rows] == [f"broken: image {i}" for i in range(9)]


def test_collator_names_the_source_without_a_readable_image(tmp_path: Path) -> None:
    mixture = Mixture([Part("whole", Memory(), 1.0), Part("broken", Memory(frozenset(range(10))), 0.001)])
    make = collator(tmp_path, mixture)
    with pytest.raises(InputError, match="100 images in a row of source broken can't be read"):
        for step in range(1500):
            make._image(step, step)


def test_collator_passes_over_an_image_deleted_while_running(tmp_path: Path) -> None:
    for number in range(4):
        Image.new("RGB", (20, 20), (number, 0, 0)).save(tmp_path / f"{number}.png")
    make = collator(tmp_path, FolderSource(tmp_path))
    make(0)
    (tmp_path / "2.png").unlink()
    make(1)
    (row,) = read_bad_samples(tmp_path / "bad.jsonl")
    assert row["id"] == "2.png"
    assert "No such file" in row["reason"]


def test_collator_passes_over_images_of_a_shard_cut_off_in_the_middle(tmp_path: Path) -> None:
    store = Store(StoreParams(url=str(tmp_path / "store"), cache=str(tmp_path / "cache"), remote=None))
    with ShardWriter(store, tmp_path / "shards", shard_mb=1) as writer:
        for number in range(6):
            writer.add(Memory().read(number), {"mime": "image/png", "label": None})
    shard = store.local(writer.rows[0]["shard"])
    end = writer.rows[3]["offset"] + 200
    shard.chmod(0o644)
    with shard.open("r+b") as stream:
        stream.truncate(end)
    collator(tmp_path, ShardSource(writer.rows, ShardReader(store)))(0)
    rows = read_bad_samples(tmp_path / "bad.jsonl")
    assert {row["id"] for row in rows} == {row["id"] for row in writer.rows[3:]}
    assert all("is cut short" in row["reason"] for row in rows)


@pytest.mark.parametrize("pixels", [np.zeros((30, 30, 3)), np.zeros((1, 1, 3)), np.full((1, 500, 3), 255)])
def test_collator_takes_black_and_tiny_images(tmp_path: Path, pixels: np.ndarray) -> None:
    Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / "1.png")
    globals_, locals_, _ = finish(collator(tmp_path, FolderSource(tmp_path))(0), torch.device("cpu"))
    assert globals_.isfinite().all()
    assert locals_.isfinite().all()
    assert read_bad_samples(tmp_path / "bad.jsonl") == []


def test_collator_names_step_and_sample_of_an_unexpected_error(tmp_path: Path) -> None:
    make = collator(tmp_path, Memory(strange=frozenset({4})))
    with (
        pytest.raises(RuntimeError, match=r"step [01], sample image 4: ZeroDivisionError: never seen before"),
        Loader(make, range(3), num_threads=2, num_ahead=2) as loader,
    ):
        list(loader)


def test_sample_does_not_depend_on_the_rest_of_its_batch(tmp_path: Path) -> None:
    """Crops with their colours of (seed, step, position): the same bits in a batch of 8, of 2, and alone."""

    def crops(batch_size: int, place: int) -> tuple[torch.Tensor, torch.Tensor]:
        make = Collator(
            FolderSource(tmp_path), CROPS, MASKS, seed=3, batch_size=batch_size, group_size=1, patch_size=8, rank=0,
            world_size=1, bad_samples=BadSamples(tmp_path / "bad.jsonl"),
        )  # fmt: skip
        globals_, locals_, _ = finish(make(0), torch.device("cpu"))
        return globals_[:, place], locals_[:, place]

    for number in range(9):
        (tmp_path / f"{number}.png").write_bytes(Memory().read(number))
    for place, sizes in ((0, (1, 2, 8)), (1, (2, 8))):
        for size in sizes:
            for one, other in zip(crops(size, place), crops(sizes[0], place), strict=True):
                assert torch.equal(one, other)


def test_collator_of_only_broken_images_stops(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="100 images in a row"):
        collator(tmp_path, Memory(frozenset(range(10))))(0)


def test_read_bad_samples_leaves_out_a_line_cut_short(tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text('{"id": "b", "reason": "r"}\n{"id": "a", "reason": "r"}\n{"id": "c", "re')
    assert [row["id"] for row in read_bad_samples(path)] == ["a", "b"]


def test_loader_gives_equal_batches_for_any_threads_and_start(tmp_path: Path) -> None:
    def batches(start: int, num_threads: int) -> list[RawBatch]:
        make = collator(tmp_path, Memory())
        with Loader(make, range(start, 6), num_threads=num_threads, num_ahead=3) as loader:
            return list(loader)

    one, three, late = batches(0, 1), batches(0, 3), batches(4, 2)
    assert len(one) == 6
    for left, right in [*zip(one, three, strict=True), *zip(one[4:], late, strict=True)]:
        assert torch.equal(left.global_crops, right.global_crops)
        assert torch.equal(left.masks, right.masks)
