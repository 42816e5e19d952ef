"""Batches depend on (seed, step) alone, not on ranks, threads or where a run starts; broken images are passed over."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dinov2.data.collate import BadSamples, Collator, RawBatch, finish, read_bad_samples
from dinov2.data.loader import Loader
from dinov2.data.params import CropParams, MaskParams
from dinov2.data.sampler import sample_index
from dinov2.params import InputError

CROPS = CropParams(
    global_size_px=32, global_scale=(0.32, 1.0), local_size_px=16, local_scale=(0.05, 0.32), num_local=2,
    blur="reference", jitter_probability=0.8, brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1,
    grayscale_probability=0.2, solarize_probability=0.2,
)  # fmt: skip
MASKS = MaskParams(probability=0.5, ratio_min=0.1, ratio_max=0.5)


class Memory:
    """Ten small images in memory; those in `broken` are cut short."""

    def __init__(self, broken: frozenset[int] = frozenset()) -> None:
        self.broken = broken

    def __len__(self) -> int:
        return 10

    def read(self, i: int) -> bytes:
        buffer = io.BytesIO()
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(buffer, "PNG")
        return buffer.getvalue()[: 100 if i in self.broken else None]

    def id(self, i: int) -> str:
        return f"image {i}"

    def label(self, i: int) -> str | None:
        return None


def collator(tmp_path: Path, source: Memory, *, rank: int = 0, world_size: int = 1) -> Collator:
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
    assert np.array_equal(make._image(position), make._image(position + 1))
    make(0)
    make(1)
    rows = read_bad_samples(tmp_path / "bad.jsonl")
    assert [row["id"] for row in rows] == ["image 7"]
    assert following != 7


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


def test_loader_raises_what_a_thread_raised_in_its_turn() -> None:
    def make(step: int) -> int:
        if step == 2:
            raise InputError("the second is bad")
        return step

    taken = []
    with pytest.raises(InputError, match="second"), Loader(make, range(5), num_threads=2, num_ahead=4) as loader:
        for step in loader:
            taken.append(step)  # noqa: PERF402 - what came before the error counts
    assert taken == [0, 1]


def test_loader_leaves_the_compute_threads_as_they_were() -> None:
    before = torch.get_num_threads()
    with Loader(lambda step: torch.get_num_threads(), range(3), num_threads=2, num_ahead=2) as loader:
        assert list(loader) == [1, 1, 1]
    assert torch.get_num_threads() == before
