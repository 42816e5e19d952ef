"""Filtering as a whole: looks part by part, then one manifest. Every reason, blurred images, and sums that add up."""

import io
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from tiny_networks import write_faces, write_nsfw

from dinov2.curation.filter.faces import FacesParams
from dinov2.curation.filter.filters import FilterParams
from dinov2.curation.filter.gathering import gather
from dinov2.curation.filter.hashing import PcaHashParams
from dinov2.curation.filter.looks import count_parts, look_part, part_path
from dinov2.curation.filter.nsfw import NsfwParams
from dinov2.data.decode import decode_rgb
from dinov2.params import InputError
from dinov2.records import LOOKS, MANIFEST, REMOVED, Summary, read_table, write_table
from dinov2.shards import ShardReader, ShardWriter
from dinov2.store import Store, StoreParams

PARAMS = FilterParams(
    min_side_px=32,
    max_aspect=3.0,
    min_grey_std=4.0,
    max_dominant_share=0.95,
    nsfw=None,
    faces=None,
    pca_hash=PcaHashParams(num_bits=64, thumbnail_px=16, sample_size=100, max_hamming_bits=6),
    part_images=3,
)
Rows = list[dict[str, Any]]


class Filtered(NamedTuple):
    kept: Rows
    removed: Rows
    looks: Rows
    summary: Summary


def with_networks(folder: Path) -> FilterParams:
    """Reddish images are unsafe, green spots are faces."""
    nsfw = NsfwParams(path=str(folder / "nsfw.onnx"), sha256=write_nsfw(folder / "nsfw.onnx"), max_score=0.8)
    faces = FacesParams(
        path=str(folder / "faces.onnx"), sha256=write_faces(folder / "faces.onnx"), detect_px=640, min_score=0.7,
        min_face_px=8, margin_share=0.1, sigma_share=0.3, jpeg_quality=95,
    )  # fmt: skip
    return PARAMS.model_copy(update={"nsfw": nsfw, "faces": faces})


def photograph(seed: int, width: int = 64, height: int = 48) -> NDArray[np.uint8]:
    """Noise with the spectrum of photographs (amplitude falls as 1/frequency), in a tint."""
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(width) * width, np.fft.fftfreq(height) * height))
    spectrum = np.fft.fft2(np.random.default_rng(seed).standard_normal((height, width))) / np.maximum(frequency, 1)
    luminance = np.fft.ifft2(spectrum).real
    pixels = 128 + 45 * (luminance / luminance.std())[..., None] * np.array([1.0, 0.9, 0.7])
    return np.clip(pixels, 0, 255).astype(np.uint8)


def with_face(pixels: NDArray[np.uint8], x: int = 40, y: int = 20) -> NDArray[np.uint8]:
    marked = pixels.copy()
    marked[y : y + 4, x : x + 4] = (0, 255, 0)
    return marked


def encode(pixels: NDArray[np.uint8], kind: str = "png", **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


def store_images(folder: Path, images: list[tuple[str, bytes]]) -> tuple[Rows, Store]:
    store = Store(StoreParams(url=str(folder / "store"), cache="", remote=None))
    with ShardWriter(store, folder / "shards", shard_mb=1) as writer:
        for name, data in images:
            empty = {"width": None, "height": None, "page_url": "", "label": None}
            writer.add(data, {"url": name, "mime": "image/jpeg" if data[:1] == b"\xff" else "image/png", **empty})
    return writer.rows, store


def filter_rows(folder: Path, rows: Rows, store: Store, params: FilterParams) -> Filtered:
    """Look at the parts, last one first, and gather them."""
    download, work, out = folder / "download", folder / "work", folder / "out"
    out.mkdir(parents=True, exist_ok=True)
    write_table(download / "manifest.parquet", MANIFEST, rows)
    parts = range(count_parts(params, download=download))
    for part in reversed(parts):
        look_part(part, params, download=download, work=work, store=store)
    summary = gather([part_path(work, part) for part in parts], params, out)
    assert summary.num_in == summary.num_kept + sum(summary.dropped.values()) == len(rows)
    names = (("manifest", MANIFEST), ("removed", REMOVED), ("looks", LOOKS))
    kept, removed, looks = (read_table(out / f"{name}.parquet", schema) for name, schema in names)
    return Filtered(kept, removed, looks, summary)


def filter_all(folder: Path, images: list[tuple[str, bytes]], params: FilterParams = PARAMS) -> Filtered:
    rows, store = store_images(folder, images)
    return filter_rows(folder, rows, store, params)


def reasons(result: Filtered) -> list[tuple[str, str]]:
    return [(row["url"], row["reason"]) for row in result.removed]


def test_every_reason_and_counts_add_up(tmp_path: Path) -> None:
    good = encode(photograph(0), "jpeg", quality=95)
    red = photograph(4) // 4
    red[..., 0] += 150
    images = [
        ("good", good),
        ("cut", good[: len(good) // 2]),
        ("header", b"\x89PNG\r\n\x1a\n" + b"no more"),
        ("dot", encode(photograph(1)[:1, :1])),
        ("banner", encode(photograph(2, 400, 40))),
        ("blank", encode(np.full((50, 50, 3), 255, np.uint8))),
        ("endless", encode(np.zeros((1, 65_501, 3), np.uint8))),
        ("red", encode(red)),
        ("other", encode(photograph(3))),
    ]
    result = filter_all(tmp_path, images, with_networks(tmp_path))
    assert [(row["url"], row["width"], row["height"]) for row in result.kept] == [("good", 64, 48), ("other", 64, 48)]
    assert reasons(result) == [
        ("cut", "undecodable"),
        ("header", "undecodable"),
        ("dot", "too_small"),
        ("banner", "extreme_aspect"),
        ("blank", "near_constant"),
        ("endless", "too_large"),
        ("red", "nsfw"),
    ]
    assert result.summary.dropped == {
        "undecodable": 2, "too_small": 1, "extreme_aspect": 1, "near_constant": 1, "too_large": 1, "nsfw": 1,
    }  # fmt: skip
    assert result.summary.metrics["nsfw_checked"] == result.summary.metrics["faces_checked"] == 1
    scores = [row["nsfw_score"] for row in result.looks]  # networks see only what nothing else speaks against
    assert [index for index, score in enumerate(scores) if score is not None] == [0, 7, 8]
    assert scores[7] > 0.8 > max(scores[0], scores[8])


def test_switched_off_networks_are_said_to_be(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    result = filter_all(tmp_path, [("face", encode(with_face(photograph(0)))), ("other", encode(photograph(1)))])
    assert (result.summary.metrics["nsfw_checked"], result.summary.metrics["faces_checked"]) == (0, 0)
    assert [row["num_faces"] for row in result.looks] == [None, None]
    assert "filter.nsfw is null: no image was checked" in caplog.text
    assert "filter.faces is null: no image was checked" in caplog.text


def test_copies_name_the_largest_as_witness(tmp_path: Path) -> None:
    large = Image.fromarray(photograph(5, 128, 96))
    images = [
        ("thumbnail", encode(np.asarray(large.resize((64, 48), Image.Resampling.LANCZOS)), "jpeg", quality=70)),
        ("other", encode(photograph(6, 128, 96))),
        ("large", encode(np.asarray(large))),
        ("recoded", encode(np.asarray(large), "jpeg", quality=60)),  # in another part
    ]
    result = filter_all(tmp_path, images)
    ids = {row["url"]: row["id"] for row in result.kept}
    assert list(ids) == ["other", "large"]
    assert [(row["url"], row["reason"], row["witness_id"]) for row in result.removed] == [
        ("thumbnail", "pca_hash_duplicate", ids["large"]),
        ("recoded", "pca_hash_duplicate", ids["large"]),
    ]


def test_image_with_a_face_is_kept_blurred_under_a_new_id(tmp_path: Path) -> None:
    faced = with_face(with_face(photograph(7, 128, 96), 40, 20), 96, 72)
    rows, store = store_images(tmp_path, [("plain", encode(photograph(8, 128, 96))), ("faced", encode(faced))])
    rows[1]["label"] = "people"
    result = filter_rows(tmp_path, rows, store, with_networks(tmp_path))
    plain, blurred = result.kept
    assert (plain["id"], plain["source_id"], plain["shard"]) == (rows[0]["id"], None, rows[0]["shard"])
    assert blurred["source_id"] == rows[1]["id"] != blurred["id"]
    assert blurred["shard"] != rows[1]["shard"]
    assert (blurred["mime"], blurred["width"], blurred["height"]) == ("image/jpeg", 128, 96)
    assert (blurred["url"], blurred["label"]) == ("faced", "people")
    reader = ShardReader(store)
    pixels = decode_rgb(reader.read(blurred)).astype(int)
    reader.close()
    for y, x in ((20, 40), (72, 96)):
        assert (pixels[y : y + 4, x : x + 4, 1] - pixels[y : y + 4, x : x + 4, 0]).max() < 60
    assert abs(pixels[:, :20] - faced[:, :20]).max() < 30
    assert result.removed == []
    assert [(row["id"], row["num_faces"]) for row in result.looks] == [(rows[0]["id"], 0), (rows[1]["id"], 2)]
    metrics = result.summary.metrics
    assert (metrics["num_blurred"], metrics["num_faces_blurred"], result.summary.num_kept) == (1, 2, 2)


def test_copy_of_a_blurred_image_is_removed_under_the_id_it_came_by(tmp_path: Path) -> None:
    faced = encode(with_face(photograph(7, 128, 96)))
    again = encode(with_face(photograph(7, 128, 96)), compress_level=1)  # other bytes, equal pixels: one new id
    rows, store = store_images(tmp_path, [("a", faced), ("b", again), ("plain", encode(photograph(8)))])
    assert rows[0]["id"] != rows[1]["id"]
    result = filter_rows(tmp_path, rows, store, with_networks(tmp_path))
    assert [row["url"] for row in result.kept] == ["a", "plain"]
    assert [(row["id"], row["reason"]) for row in result.removed] == [(rows[1]["id"], "duplicate_id")]
    assert result.removed[0]["witness_id"] == result.kept[0]["id"]
    assert result.summary.metrics["num_blurred"] == 1


def test_rows_of_one_id_leave_the_first(tmp_path: Path) -> None:
    rows, store = store_images(tmp_path, [(str(seed), encode(photograph(seed))) for seed in range(4)])
    rows += [{**rows[1], "url": "1 again"}, {**rows[1], "url": "1 once more"}]
    result = filter_rows(tmp_path, rows, store, PARAMS)
    assert [row["url"] for row in result.kept] == ["0", "1", "2", "3"]
    assert reasons(result) == [("1 again", "duplicate_id"), ("1 once more", "duplicate_id")]
    assert {row["witness_id"] for row in result.removed} == {rows[1]["id"]}


def test_damaged_shard_is_named_and_the_rest_goes_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows, store = store_images(tmp_path, [(str(seed), encode(photograph(seed))) for seed in range(4)])
    path = store.local(rows[0]["shard"])
    data = bytearray(path.read_bytes())
    data[rows[1]["offset"] + 50] ^= 1
    path.write_bytes(data[: rows[3]["offset"] + 10])
    result = filter_rows(tmp_path, rows, store, PARAMS)
    assert [row["url"] for row in result.kept] == ["0", "2"]
    assert reasons(result) == [("1", "damaged_shard"), ("3", "damaged_shard")]
    assert result.summary.metrics["damaged_shards"] == 1
    assert rows[0]["shard"] in caplog.text


def test_manifest_that_does_not_match_its_shard_costs_those_images(tmp_path: Path) -> None:
    rows, store = store_images(tmp_path, [(str(seed), encode(photograph(seed))) for seed in range(9)])
    rows[1]["offset"], rows[2]["offset"] = rows[2]["offset"], rows[1]["offset"]
    rows[3]["offset"] = -1
    rows[4]["length"] = -5
    rows[5]["length"] = 2**40
    rows[6]["offset"] = 2**62
    rows[7]["id"] = "no hash"
    result = filter_rows(tmp_path, rows, store, PARAMS)
    assert [row["url"] for row in result.kept] == ["0", "8"]
    assert reasons(result) == [(str(index), "damaged_shard") for index in range(1, 8)]


def test_manifest_without_places_or_of_another_schema_is_an_input_error(tmp_path: Path) -> None:
    rows, store = store_images(tmp_path, [(str(seed), encode(photograph(seed))) for seed in range(4)])
    rows[3]["shard"] = None
    with pytest.raises(InputError, match=r"manifest\.parquet: row 3 does not say where its image lies; run download"):
        filter_rows(tmp_path, rows, store, PARAMS)
    write_table(tmp_path / "download/manifest.parquet", REMOVED, [])
    with pytest.raises(InputError, match=r"has no column 'shard' of type string; make it again"):
        count_parts(PARAMS, download=tmp_path / "download")
    (tmp_path / "download/manifest.parquet").write_bytes(b"PAR1 no more")
    with pytest.raises(InputError, match="is not a readable Parquet file"):
        count_parts(PARAMS, download=tmp_path / "download")


def test_absent_shard_says_how_to_get_it(tmp_path: Path) -> None:
    rows, store = store_images(tmp_path, [("a", encode(photograph(0)))])
    store.local(rows[0]["shard"]).unlink()
    with pytest.raises(InputError, match="needs 1 blobs that are absent"):
        filter_rows(tmp_path, rows, store, PARAMS)


def test_only_junk_is_an_input_error(tmp_path: Path) -> None:
    junk = [(str(i), encode(np.full((50, 50, 3), i, np.uint8))) for i in range(3)]
    with pytest.raises(InputError, match=r"all 3 images are unfit \(3 near_constant\); give better images"):
        filter_all(tmp_path, junk, PARAMS)
    with pytest.raises(InputError, match="download left no image to filter"):
        filter_rows(tmp_path / "c", [], Store(StoreParams(url=str(tmp_path / "store"), cache="", remote=None)), PARAMS)


def test_hash_is_fitted_on_the_same_sample_however_the_parts_are_cut(tmp_path: Path) -> None:
    images = [(str(seed), encode(photograph(seed))) for seed in range(11)]
    pca_hash = PARAMS.pca_hash.model_copy(update={"sample_size": 5})
    for part_images in (1, 4, 100):
        params = PARAMS.model_copy(update={"part_images": part_images, "pca_hash": pca_hash})
        filter_all(tmp_path / str(part_images), images, params)
    for name in ("pca_hash.npz", "manifest.parquet", "removed.parquet", "looks.parquet"):
        assert len({(tmp_path / str(size) / "out" / name).read_bytes() for size in (1, 4, 100)}) == 1
