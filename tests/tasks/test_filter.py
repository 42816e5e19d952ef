"""The filter stage: pinned outcome of a tiny manifest. When it changes, raise VERSION."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dinov2.curation.filters import FilterParams
from dinov2.curation.hashing import PcaHash, PcaHashParams
from dinov2.params import InputError
from dinov2.records import MANIFEST, REMOVED, read_table, write_table
from dinov2.shards import ShardWriter
from dinov2.store import Store, StoreParams
from tasks import filter as filter_stage

PARAMS = FilterParams(
    min_side_px=32,
    max_aspect=2.0,
    min_grey_std=4.0,
    max_dominant_share=0.9,
    pca_hash=PcaHashParams(num_bits=32, thumbnail_px=8, sample_size=10, max_hamming_bits=2),
    max_dropped_share=0.9,
)


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(buffer, "png")
    return buffer.getvalue()


def cosines(seed: int) -> np.ndarray:
    """A picture of 48 x 64 pixels with every low frequency in it, the lowest strongest."""
    y, x, i, j = np.ogrid[0:48, 0:64, 0:8, 0:8]
    waves = np.cos(np.pi * (y + 0.5) * i / 48) * np.cos(np.pi * (x + 0.5) * j / 64) / (1 + i + j)
    luminance = (waves * np.random.default_rng(seed).choice([-1.0, 1.0], (8, 8))).sum(axis=(2, 3))
    return np.clip(120 + 40 * luminance / luminance.std(), 0, 255)[..., None] * np.ones(3)


def make_manifest(folder: Path) -> Store:
    """A picture, a darker copy, another picture, and one image for each reason."""
    store = Store(StoreParams(url=str(folder / "store"), cache=""))
    waves = cosines(0)
    images = {
        "waves": png(waves),
        "darker": png(waves * 0.8),
        "other": png(cosines(1)),
        "small": png(waves[:20]),
        "long": png(waves[:32][:, np.arange(100) % 64]),
        "flat": png(waves * 0 + 128),
        "broken": b"\x89PNG\r\n\x1a\n",
    }
    empty = {"page_url": "", "label": None, "width": None, "height": None, "mime": "image/png"}
    with ShardWriter(store, folder / "shards", shard_mb=1) as writer:
        for name, data in images.items():
            writer.add(data, {"url": name, **empty})
    write_table(folder / "download/manifest.parquet", MANIFEST, writer.rows)
    return store


def test_outputs_of_a_tiny_manifest(tmp_path: Path) -> None:
    store = make_manifest(tmp_path)
    (tmp_path / "out").mkdir()
    summary = filter_stage.run(PARAMS, download=tmp_path / "download", out=tmp_path / "out", store=store)
    manifest = read_table(tmp_path / "out/manifest.parquet", MANIFEST)
    removed = read_table(tmp_path / "out/removed.parquet", REMOVED)
    kept = {row["url"]: row["id"] for row in manifest}
    pinned = (
        [("waves", 64, 48), ("other", 64, 48)],
        [
            ("small", "too_small", None),
            ("long", "extreme_aspect", None),
            ("flat", "near_constant", None),
            ("broken", "undecodable", None),
            ("darker", "pca_hash_duplicate", kept["waves"]),
        ],
    )
    found = (
        [(row["url"], row["width"], row["height"]) for row in manifest],
        [(row["url"], row["reason"], row["witness_id"]) for row in removed],
    )
    assert (filter_stage.VERSION, *found) == (1, *pinned)
    assert summary.num_in == summary.num_kept + sum(summary.dropped.values()) == 7
    assert PcaHash.load(tmp_path / "out/pca_hash.npz").components.shape == (32, 64)


def test_absent_shard_says_how_to_get_it(tmp_path: Path) -> None:
    store = make_manifest(tmp_path)
    for path in (tmp_path / "store").rglob("*.tar"):
        path.unlink()
    with pytest.raises(InputError, match="needs 1 blobs that are absent"):
        filter_stage.run(PARAMS, download=tmp_path / "download", out=tmp_path / "out", store=store)
