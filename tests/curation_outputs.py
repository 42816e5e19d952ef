"""The outputs of a small curation, made up: what the pages and commands that look at a curation are tested on.

pool: p0 to p9, each a drawn picture. p0 to p2 are taken by seed s0 (sample), p3 by s1 (cluster), p4 is not retrieved,
p5 copies p0, p6 copies p5 (a chain), p7 copies an evaluation image, p8 is too small, p9 has a face and became q9.
"""

import io
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

from dinov2.curation.descriptors import EMBEDDED, store_block
from dinov2.records import CURATED, IMAGE_RECORDS, MANIFEST, REMOVED, write_json, write_table
from dinov2.shards import ShardWriter
from dinov2.store import Store, StoreParams

DEGREES = {
    "p0": 0, "p1": 10, "p2": 20, "p3": 90, "p4": 45, "p5": 3, "p6": 6, "p7": 120, "q9": 60, "s0": 1, "s1": 91,
    "e0": 121,
}  # fmt: skip


class Outputs(NamedTuple):
    """Where they lie, and the ids by name."""

    data: Path
    store: Store
    ids: dict[str, str]

    @property
    def folders(self) -> dict[str, Path]:
        """The stages' folders."""
        return {path.name: path for path in self.data.iterdir()}


def write_outputs(root: Path) -> Outputs:
    """All tables, blocks, shards and records of crawl to retrieve below `root`/data."""
    data = root / "data"
    store = Store(StoreParams(url=str(root / "store"), cache=str(root / "cache"), remote=None))
    packed = _pack(root, store, [f"p{i}" for i in range(10)] + ["q9", "s0", "s1"])
    rows = {row["alt"]: {name: row.get(name) for name in EMBEDDED.names} for row in packed}
    rows["e0"] = {**dict.fromkeys(EMBEDDED.names), "id": "e" * 64, "path": "label/e0.jpg", "width": 60, "height": 50}
    for name in ("s0", "s1"):
        rows[name] |= {"url": None, "page_url": None, "path": f"label/{name}.jpg", "label": "label"}
    ids = {name: str(row["id"]) for name, row in rows.items()}
    _early(data, rows, ids)
    _embedded(data, rows, store, root)
    _late(data, rows, ids)
    _records(data)
    return Outputs(data, store, ids)


def picture(number: int) -> bytes:
    """A JPEG, different for every number."""
    coarse = np.random.Generator(np.random.PCG64(number)).integers(0, 256, (4, 4, 3), np.uint8)
    stream = io.BytesIO()
    Image.fromarray(coarse).resize((60, 50), Image.Resampling.BICUBIC).save(stream, "JPEG")
    return stream.getvalue()


def _pack(root: Path, store: Store, names: list[str]) -> list[dict[str, Any]]:
    about = {"mime": "image/jpeg", "width": 60, "height": 50, "label": None, "page_url": "https://a.example/page"}
    with ShardWriter(store, root / "shards", shard_mb=1) as writer:
        for number, name in enumerate(names):
            writer.add(picture(number), {**about, "url": f"https://a.example/{name}.jpg", "alt": name})
    return writer.rows


def _early(data: Path, rows: dict[str, Any], ids: dict[str, str]) -> None:
    fetched = [rows[f"p{i}"] for i in range(10)]
    records = [
        {"url": row["url"], "page_url": row["page_url"], "alt": "a photo", "warc": "a.warc.gz", "warc_offset": 7}
        for row in [*fetched, {"url": "https://b.example/gone.jpg", "page_url": "https://a.example/page"},
                    {"url": "https://b.example/same.jpg", "page_url": "https://a.example/page"}]
    ]  # fmt: skip
    write_table(data / "crawl/records.parquet", IMAGE_RECORDS, records)
    crawled = [{"url": "https://bad.example/x.jpg", "reason": "refused_domain"}]
    write_table(data / "crawl/removed.parquet", REMOVED, [*crawled, {"url": rows["p0"]["url"], "reason": "repeated"}])
    write_table(data / "download/manifest.parquet", MANIFEST, [_only(row, MANIFEST) for row in fetched])
    lost = [
        {"url": "https://b.example/gone.jpg", "reason": "tdm_header"},
        {"id": ids["p0"], "url": "https://b.example/same.jpg", "reason": "duplicate_bytes", "witness_id": ids["p0"]},
    ]
    write_table(data / "download/removed.parquet", REMOVED, lost)
    kept = [_only(rows[f"p{i}"], MANIFEST) for i in range(8)]
    blurred = {**_only(rows["q9"], MANIFEST), "source_id": ids["p9"], "url": rows["p9"]["url"]}
    write_table(data / "filter/manifest.parquet", MANIFEST, [*kept, blurred])
    write_table(data / "filter/removed.parquet", REMOVED, [{"id": ids["p8"], "url": "u", "reason": "too_small"}])


def _embedded(data: Path, rows: dict[str, Any], store: Store, work: Path) -> None:
    sets = {"pool": [*(f"p{i}" for i in range(8)), "q9"], "seeds": ["s0", "s1"], "evaluation": ["e0"]}
    blobs: dict[str, dict[str, list[str]]] = {}
    for name, members in sets.items():
        write_table(data / f"embed/{name}.parquet", EMBEDDED, [rows[member] for member in members])
        write_table(data / f"embed/removed/{name}.parquet", REMOVED, [])
        halves = [members[:4], members[4:]] if len(members) > 4 else [members]
        blocks = [store_block(store, work, on_circle(*(DEGREES[member] for member in half))) for half in halves]
        blobs[name] = {"copy": blocks, "semantic": blocks}
    write_json(data / "embed/embeddings.json", blobs)


def _late(data: Path, rows: dict[str, Any], ids: dict[str, str]) -> None:
    unique = ["p0", "p1", "p2", "p3", "p4", "q9"]
    write_table(data / "dedup/manifest.parquet", MANIFEST, [_only(rows[name], MANIFEST) for name in unique])
    write_table(data / "dedup/seeds.parquet", EMBEDDED, [rows["s0"], rows["s1"]])
    copies = [("p5", "copy", "p0", 3), ("p6", "copy", "p5", 3), ("p7", "evaluation_copy:held_out", "e0", 1)]
    removed = [
        {"id": ids[name], "url": rows[name]["url"], "reason": reason, "witness_id": ids[witness],
         "cosine": float(np.cos(np.radians(degrees)))}
        for name, reason, witness, degrees in copies
    ]  # fmt: skip
    write_table(data / "dedup/removed.parquet", REMOVED, removed)
    write_table(data / "dedup/seeds_removed.parquet", REMOVED, [])
    chosen = [("s0", "seed", "s0"), ("s1", "seed", "s1"), *((f"p{i}", "sample", "s0") for i in range(3))]
    curated = [
        {**_only(rows[name], MANIFEST), "origin": origin, "seed_id": ids[seed], "cluster": 4,
         "source": "label" if seed == "s0" else None,
         "cosine": float(np.cos(np.radians(DEGREES[name] - DEGREES[seed])))}
        for name, origin, seed in [*chosen, ("p3", "cluster", "s1")]
    ]  # fmt: skip
    write_table(data / "retrieve/manifest.parquet", CURATED, curated)
    left = [{"id": ids[name], "url": rows[name]["url"], "reason": "not_retrieved"} for name in ("p4", "q9")]
    write_table(data / "retrieve/removed.parquet", REMOVED, left)


def _records(data: Path) -> None:
    sets = {"held_out": {"folder": "", "min_cosine": 0.99}}
    params = {
        "crawl": {"refused_domains": ["bad.example"]},
        "download": {"opt_out": {"robots_txt": True, "tdm_reservation": True}},
        "filter": {"min_side_px": 32, "nsfw": None, "faces": {"path": "faces.onnx", "min_score": 0.5}},
        "embed": {"copy_descriptor": {"kind": "thumbnail", "size_px": 16}},
        "dedup": {"min_cosine": 0.995, "evaluation_sets": sets},
        "retrieve": {"choose": {"num_neighbors": 3, "num_from_cluster": 1, "min_cosine": 0.9}},
    }
    counts = {
        "crawl": (17, 13, {"refused_domain": 1, "repeated": 1, "page_meta_robots_noai": 2}),
        "download": (13, 10, {"tdm_header": 1, "duplicate_bytes": 1, "robots_unavailable": 1}),
        "filter": (10, 9, {"too_small": 1}),
        "embed": (9, 9, {}),
        "dedup": (9, 6, {"copy": 2, "evaluation_copy:held_out": 1}),
        "retrieve": (6, 4, {"not_retrieved": 2}),
    }
    for stage, (num_in, num_kept, dropped) in counts.items():
        write_json(data / stage / "record.json", {
            "stage": stage, "version": 1, "arguments": {}, "params": params[stage], "inputs": {"before": "0" * 64},
            "counts": {"num_in": num_in, "num_kept": num_kept, "dropped": dropped},
        })  # fmt: skip
        write_json(data / stage / "metrics.json", {"pair_recall": 0.993} if stage == "dedup" else {})


def on_circle(*degrees: float) -> NDArray[np.float32]:
    """Unit vectors of the plane."""
    angles = np.radians(degrees)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


def _only(row: dict[str, Any], schema: pa.Schema) -> dict[str, Any]:
    return {name: row.get(name) for name in schema.names}
