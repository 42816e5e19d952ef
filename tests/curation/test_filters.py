"""Filters: each reason on an image made for it, copies with their witness, damaged shards, too much dropped."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from dinov2.curation.filters import FilterParams, FilterResult, Look, filter_images, judge, look_at
from dinov2.curation.hashing import PcaHashParams
from dinov2.params import InputError
from dinov2.shards import ShardReader, ShardWriter
from dinov2.store import Store, StoreParams

PARAMS = FilterParams(
    min_side_px=32,
    max_aspect=3.0,
    min_grey_std=4.0,
    max_dominant_share=0.95,
    pca_hash=PcaHashParams(num_bits=64, thumbnail_px=16, sample_size=100, max_hamming_bits=6),
    max_dropped_share=0.9,
)


def photograph(seed: int, width: int = 64, height: int = 48) -> NDArray[np.uint8]:
    """Noise with the spectrum of photographs (amplitude falls as 1/frequency), in a tint."""
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(width) * width, np.fft.fftfreq(height) * height))
    spectrum = np.fft.fft2(np.random.default_rng(seed).standard_normal((height, width))) / np.maximum(frequency, 1)
    luminance = np.fft.ifft2(spectrum).real
    pixels = 128 + 45 * (luminance / luminance.std())[..., None] * np.array([1.0, 0.9, 0.7])
    return np.clip(pixels, 0, 255).astype(np.uint8)


def encode(pixels: NDArray[np.uint8], kind: str = "png", **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


def store_images(folder: Path, images: list[tuple[str, bytes]]) -> tuple[list[dict[str, Any]], Store]:
    store = Store(StoreParams(url=str(folder / "store"), cache=""))
    with ShardWriter(store, folder / "shards", shard_mb=1) as writer:
        for name, data in images:
            empty = {"width": None, "height": None, "page_url": "", "label": None}
            writer.add(data, {"url": name, "mime": "image/jpeg" if data[:1] == b"\xff" else "image/png", **empty})
    return writer.rows, store


def filter_all(folder: Path, images: list[tuple[str, bytes]], params: FilterParams = PARAMS) -> FilterResult:
    rows, store = store_images(folder, images)
    reader = ShardReader(store)
    try:
        return filter_images(rows, params, reader)
    finally:
        reader.close()


def looks_of(**changes: float) -> Look:
    return Look(64, 48, 50.0, 0.1, np.zeros((16, 16), np.uint8))._replace(**changes)


@pytest.mark.parametrize(
    ("look", "reason"),
    [
        (looks_of(), None),
        (looks_of(width=31), "too_small"),
        (looks_of(width=1, height=1), "too_small"),
        (looks_of(width=32, height=32), None),
        (looks_of(width=144), None),
        (looks_of(width=145), "extreme_aspect"),
        (looks_of(width=40, height=121), "extreme_aspect"),
        (looks_of(grey_std=3.9), "near_constant"),
        (looks_of(dominant_share=0.96), "near_constant"),
        (looks_of(width=20, height=400, grey_std=0.0), "too_small"),  # the first reason counts
    ],
)
def test_judge_names_the_first_reason(look: Look, reason: str | None) -> None:
    assert judge(look, PARAMS) == reason


def test_look_at_measures() -> None:
    half = np.zeros((40, 600, 3), np.uint8)
    half[:, 300:] = 200
    look = look_at(half, 16)
    assert (look.width, look.height) == (600, 40)
    assert look.grey_std == pytest.approx(100.0)
    assert look.dominant_share == pytest.approx(0.5)
    assert look.thumbnail.shape == (16, 16)
    assert look.thumbnail[0, 0] == 0
    assert look.thumbnail[15, 15] == 200


def test_every_reason_and_counts_add_up(tmp_path: Path) -> None:
    good = encode(photograph(0), "jpeg", quality=95)
    images = [
        ("good", good),
        ("cut", good[: len(good) // 2]),
        ("header", b"\x89PNG\r\n\x1a\n" + b"no more"),
        ("dot", encode(photograph(1)[:1, :1])),
        ("banner", encode(photograph(2, 400, 40))),
        ("blank", encode(np.full((50, 50, 3), 255, np.uint8))),
        ("other", encode(photograph(3))),
    ]
    result = filter_all(tmp_path, images)
    assert [(row["url"], row["width"], row["height"]) for row in result.rows] == [("good", 64, 48), ("other", 64, 48)]
    assert [(row["url"], row["reason"]) for row in result.removed] == [
        ("cut", "undecodable"),
        ("header", "undecodable"),
        ("dot", "too_small"),
        ("banner", "extreme_aspect"),
        ("blank", "near_constant"),
    ]


def test_copies_name_the_largest_as_witness(tmp_path: Path) -> None:
    large = Image.fromarray(photograph(5, 128, 96))
    images = [
        ("thumbnail", encode(np.asarray(large.resize((64, 48), Image.Resampling.LANCZOS)), "jpeg", quality=70)),
        ("other", encode(photograph(6, 128, 96))),
        ("large", encode(np.asarray(large))),
        ("recoded", encode(np.asarray(large), "jpeg", quality=60)),
    ]
    result = filter_all(tmp_path, images)
    ids = {row["url"]: row["id"] for row in result.rows}
    assert list(ids) == ["other", "large"]
    assert [(row["url"], row["reason"], row["witness_id"]) for row in result.removed] == [
        ("thumbnail", "pca_hash_duplicate", ids["large"]),
        ("recoded", "pca_hash_duplicate", ids["large"]),
    ]


def test_damaged_shard_is_named_and_the_rest_goes_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows, store = store_images(tmp_path, [(str(seed), encode(photograph(seed))) for seed in range(4)])
    path = store.local(rows[0]["shard"])
    data = bytearray(path.read_bytes())
    data[rows[1]["offset"] + 50] ^= 1
    path.write_bytes(data[: rows[3]["offset"] + 10])
    reader = ShardReader(store)
    result = filter_images(rows, PARAMS, reader)
    reader.close()
    assert [row["url"] for row in result.rows] == ["0", "2"]
    assert [row["reason"] for row in result.removed] == ["damaged_shard"] * 2
    assert result.metrics["damaged_shards"] == 1
    assert rows[0]["shard"] in caplog.text


def test_only_junk_is_an_input_error(tmp_path: Path) -> None:
    junk = [(str(i), encode(np.full((50, 50, 3), i, np.uint8))) for i in range(3)]
    with pytest.raises(InputError, match=r"3 of 3 images are unfit \(3 near_constant\); give better images"):
        filter_all(tmp_path, junk, PARAMS.model_copy(update={"max_dropped_share": 1.0}))
    with pytest.raises(InputError, match=r"max_dropped_share \(0\.5\)"):
        filter_all(
            tmp_path / "b",
            [*junk, ("good", encode(photograph(0)))],
            PARAMS.model_copy(update={"max_dropped_share": 0.5}),
        )
