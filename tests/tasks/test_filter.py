"""The filter stage: pinned outcome of a tiny manifest (when it changes, raise VERSION), whoever makes its parts."""

import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from curation.filter.test_gathering import PARAMS as LIBRARY_PARAMS
from curation.filter.test_gathering import encode, photograph, store_images, with_face, with_networks

from dinov2.curation.filter.filters import FilterParams
from dinov2.curation.filter.hashing import PcaHash, PcaHashParams
from dinov2.params import InputError
from dinov2.records import MANIFEST, REMOVED, Summary, read_table, write_table
from dinov2.store import Store, StoreParams
from tasks import filter as filter_stage
from tasks.fan_out import make_parts, missing_parts

PARAMS = LIBRARY_PARAMS.model_copy(
    update={
        "max_aspect": 2.0,
        "max_dominant_share": 0.9,
        "pca_hash": PcaHashParams(num_bits=32, thumbnail_px=8, sample_size=10, max_hamming_bits=2),
    }
)


def cosines(seed: int) -> np.ndarray:
    """A picture of 48 x 64 pixels with every low frequency in it, the lowest strongest."""
    y, x, i, j = np.ogrid[0:48, 0:64, 0:8, 0:8]
    waves = np.cos(np.pi * (y + 0.5) * i / 48) * np.cos(np.pi * (x + 0.5) * j / 64) / (1 + i + j)
    luminance = (waves * np.random.default_rng(seed).choice([-1.0, 1.0], (8, 8))).sum(axis=(2, 3))
    return np.clip(120 + 40 * luminance / luminance.std(), 0, 255)[..., None] * np.ones(3)


def make_download(folder: Path, images: list[tuple[str, bytes]]) -> Store:
    rows, store = store_images(folder, images)
    write_table(folder / "download/manifest.parquet", MANIFEST, rows)
    return store


def values(folder: Path, params: FilterParams, work: Path, store: Store) -> dict[str, Any]:
    return {"params": params, "download": folder / "download", "work": work, "store": store}


def run_stage(folder: Path, params: FilterParams, store: Store, work: Path) -> Summary:
    """What the stage's own job does: makes the parts that are missing, then gathers."""
    (phase,) = filter_stage.PHASES
    make_parts(phase, values(folder, params, work, store), first=0, of=1)
    out = work / "out"
    out.mkdir()
    return filter_stage.run(params, download=folder / "download", out=out, work=work, store=store)


def test_outputs_of_a_tiny_manifest(tmp_path: Path) -> None:
    waves = cosines(0)
    images = {
        "waves": waves,
        "darker": waves * 0.8,
        "other": cosines(1),
        "small": waves[:20],
        "long": waves[:32][:, np.arange(100) % 64],
        "flat": waves * 0 + 128,
    }
    encoded = [(name, encode(pixels.astype(np.uint8))) for name, pixels in images.items()]
    store = make_download(tmp_path, [*encoded, ("broken", b"\x89PNG\r\n\x1a\n")])
    summary = run_stage(tmp_path, PARAMS, store, tmp_path / "work")
    manifest = read_table(tmp_path / "work/out/manifest.parquet", MANIFEST)
    removed = read_table(tmp_path / "work/out/removed.parquet", REMOVED)
    kept = {row["url"]: row["id"] for row in manifest}
    pinned = (
        [("waves", 64, 48), ("other", 64, 48)],
        [
            ("darker", "pca_hash_duplicate", kept["waves"]),
            ("small", "too_small", None),
            ("long", "extreme_aspect", None),
            ("flat", "near_constant", None),
            ("broken", "undecodable", None),
        ],
    )
    found = (
        [(row["url"], row["width"], row["height"]) for row in manifest],
        [(row["url"], row["reason"], row["witness_id"]) for row in removed],
    )
    assert (filter_stage.VERSION, *found) == (2, *pinned)
    assert summary.num_in == summary.num_kept + sum(summary.dropped.values()) == 7
    assert PcaHash.load(tmp_path / "work/out/pca_hash.npz").components.shape == (32, 64)
    assert (tmp_path / "work/out/blobs.json").read_text() == "{}\n"


WORKER = """
import os, pathlib, pickle, signal, sys
from dinov2.curation.filter import looks
from tasks.fan_out import Phase, make_parts
values, first, of, moment, number = pickle.load(sys.stdin.buffer)
place, _, name = moment.rpartition(".")
owner = {"": looks, "ShardWriter": looks.ShardWriter, "Path": pathlib.Path}[place]
whole, calls = getattr(owner, name), 0
def killed(*args, **kwargs):
    global calls
    calls += 1
    if calls == number:
        os.kill(os.getpid(), signal.SIGKILL)
    return whole(*args, **kwargs)
setattr(owner, name, killed)
make_parts(Phase("looks", looks.count_parts, looks.look_part), values, first=first, of=of)
"""  # of the stage's own phase, without the import of what a stage needs


def start_worker(given: dict[str, Any], *, first: int, of: int, moment: str, number: int) -> subprocess.Popen[bytes]:
    worker = subprocess.Popen([sys.executable, "-c", WORKER], stdin=subprocess.PIPE, env={**os.environ})
    assert worker.stdin is not None
    worker.stdin.write(pickle.dumps((given, first, of, moment, number)))
    worker.stdin.close()
    return worker


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_workers_and_kills_change_no_byte(tmp_path: Path) -> None:
    pictures = [(str(seed), photograph(seed, 96, 80)) for seed in range(14)]
    images = [(name, encode(with_face(pixels) if int(name) % 2 else pixels)) for name, pixels in pictures]
    params = with_networks(tmp_path)
    outs = {}
    for name in ("one", "two", "killed"):
        folder = tmp_path / name
        store = make_download(folder, images)
        opened = Store(StoreParams(url=str(folder / "store"), cache="", remote=None))
        given = values(folder, params, folder / "work", opened)
        if name == "two":
            workers = [start_worker(given, first=i, of=2, moment="write_table", number=0) for i in range(2)]
            assert [worker.wait() for worker in workers] == [0, 0]
            assert missing_parts(filter_stage.PHASES[0], given) == []
        elif name == "killed":  # in a shard, between a shard and its table, between a table and its mark
            for moment, missing in (("ShardWriter.add", 4), ("write_table", 3), ("Path.touch", 2)):
                worker = start_worker(given, first=0, of=1, moment=moment, number=3 if missing == 4 else 2)
                assert worker.wait() == -signal.SIGKILL
                assert len(missing_parts(filter_stage.PHASES[0], given)) == missing
        summary = run_stage(folder, params, store, folder / "work")
        assert summary.metrics["num_blurred"] == 7
        outs[name] = {**contents(folder / "store"), **contents(folder / "work/out")}
    assert outs["one"] == outs["two"] == outs["killed"]


@pytest.mark.parametrize("which", ["nsfw", "faces"])
def test_absent_model_stops_the_stage_even_if_no_image_needs_it(tmp_path: Path, which: str) -> None:
    params = with_networks(tmp_path)
    (tmp_path / f"{which}.onnx").unlink()
    store = make_download(tmp_path, [("dot", encode(photograph(0)[:1, :1]))])
    with pytest.raises(InputError, match=rf"filter\.{which}\.path: .*{which}\.onnx does not exist"):
        run_stage(tmp_path, params, store, tmp_path / "work")
