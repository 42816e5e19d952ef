"""Peak memory of the stage retrieve by the number of images of the pool, and what it wrote, as Markdown rows.

Run:   PYTHONPATH=. OMP_NUM_THREADS=1 python benchmarks/retrieve_memory.py --label now \
           --append benchmarks/results/retrieve_memory.md

Tables and descriptors are made up (few dimensions, each image a few bytes), with what real ones have: images that dedup
removed, damaged descriptors, sources with many seeds and with few, one that is full. The stage runs in a process of its
own. The code that is measured is that of the tree on PYTHONPATH, so that two trees can be compared: the last column has
the first digits of the sha256 of manifest, removed rows, centroids, mixture and shards. Needs 1 kB of disk an image.
"""

import argparse
import hashlib
import json
import time
from collections.abc import Iterator
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.peak_memory import peak_bytes
from dinov2.curation.descriptors import EMBEDDED, store_block
from dinov2.params import validate
from dinov2.records import MANIFEST, REMOVED, write_json, write_table
from dinov2.store import Store, StoreParams
from tasks.retrieve import RetrieveParams, run

IMAGES = (400_000, 1_600_000, 6_400_000)
DIMS = 16
SEEDS_FOR = 1_000  # pool images a seed
BATCH = 65_536
OUTPUTS = ("manifest.parquet", "removed.parquet", "centroids.npy", "mixture.json", "blobs.json")
INSPECT = {
    "num_seeds": 2, "num_neighbors": 2, "num_pairs": 2, "num_removed": 2, "num_sampled": 8, "max_rows": 20_000,
    "seed": 0, "thumbnail_px": 16,
}  # fmt: skip
HEADER = 512  # bytes; an image's are the header of the next one, so that a shard is small


def params(kind: str, num_images: int) -> RetrieveParams:
    """By seeds or balanced; a tenth of the pool is chosen."""
    seeds = {
        "kind": "seeds", "sample_based_from": 8, "num_neighbors": 100, "num_from_cluster": 500, "min_cosine": 0.0,
        "max_per_source": num_images // 20,
    }  # fmt: skip
    balanced = {
        "kind": "balanced", "coarser": [8], "num_resamplings": 1, "num_resampled": 50, "num_images": num_images // 10,
        "pick": "closest",
    }  # fmt: skip
    values = {
        "clusters": {"seed": 0, "num_clusters": 64, "num_iterations": 3, "precision": "fp32"},
        "choose": seeds if kind == "seeds" else balanced, "include_seeds": kind == "seeds", "mixture": {},
        "shard_mb": 4, "inspect": INSPECT,
    }  # fmt: skip
    return validate(RetrieveParams, values, where="benchmark")


def write_inputs(root: Path, num_images: int) -> None:
    """What download, filter, embed and dedup leave for so many images that dedup kept."""
    store = Store(StoreParams(url=str(root / "store"), cache=str(root / "cache"), remote=None))
    draw = np.random.default_rng(0)
    blobs: dict[str, dict[str, list[str]]] = {}
    num_seeds = num_images // SEEDS_FOR
    for name, num in (("seeds", num_seeds), ("pool", num_images * 7 // 6)):  # dedup takes every seventh
        table = root / "dedup" / ("manifest.parquet" if name == "pool" else "seeds.parquet")
        schema = MANIFEST if name == "pool" else EMBEDDED
        for path in (root / "embed" / f"{name}.parquet", table):
            path.parent.mkdir(parents=True, exist_ok=True)
        blocks = []
        with pq.ParquetWriter(root / "embed" / f"{name}.parquet", EMBEDDED) as embedded, \
                pq.ParquetWriter(table, schema) as unique:  # fmt: skip
            for batch, start in rows_of(store, root, name, num):
                embedded.write_table(batch)
                kept = np.arange(start, start + len(batch)) % 7 != 3 if name == "pool" else np.ones(len(batch), bool)
                unique.write_table(batch.filter(pa.array(kept)).select(schema.names))
                vectors = draw.standard_normal((len(batch), DIMS))
                vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
                vectors[(np.arange(len(batch)) + start) % 10_007 == 5] = np.nan
                blocks.append(store_block(store, root, vectors.astype(np.float32)))
        blobs[name] = {"semantic": blocks}
    write_json(root / "embed" / "embeddings.json", blobs)
    for name in ("download", "filter"):
        write_table(root / name / "manifest.parquet", MANIFEST, [])
        write_table(root / name / "removed.parquet", REMOVED, [])


def rows_of(store: Store, root: Path, name: str, num: int) -> Iterator[tuple[pa.Table, int]]:
    """Rows of EMBEDDED with the number of the first, whose images lie in a shard of the store."""
    for start in range(0, num, BATCH):
        size = min(BATCH, num - start)
        ids = [hashlib.sha256(f"{name} {number}".encode()).hexdigest() for number in range(start, start + size)]
        shard = root / "open.tar"
        headers = b"".join(f"{image}.jpg".ljust(124, "\0").encode() + b"00000001000\0".ljust(388) for image in ids)
        shard.write_bytes(headers + bytes(HEADER))
        label = pa.nulls(size, pa.string()) if name == "pool" else pa.array([label_of(start + i) for i in range(size)])
        columns: dict[str, Any] = {
            "id": ids, "shard": [store.add(shard, ".tar")] * size, "offset": HEADER * (np.arange(size) + 1),
            "length": np.full(size, HEADER), "width": np.full(size, 640), "height": np.full(size, 480),
            "mime": ["image/jpeg"] * size, "url": [f"http://pool.example/images/{start + i}.jpg" for i in range(size)],
            "page_url": [f"http://pool.example/pages/{(start + i) // 10}" for i in range(size)],
            "label": label, "source_id": pa.nulls(size, pa.string()),
            "path": pa.nulls(size, pa.string()) if name == "pool" else [f"{start + i}.jpg" for i in range(size)],
        }  # fmt: skip
        yield pa.table([pa.array(columns[field.name]).cast(field.type) for field in EMBEDDED], schema=EMBEDDED), start


def label_of(number: int) -> str | None:
    """Of a seed: a few large sources, one without a name, and a rare one."""
    return "rare" if number % 97 == 0 and number < 500 else None if number % 11 == 0 else f"large {number % 3}"


def retrieve(root: Path, kind: str, num_images: int, queue: Any) -> None:
    """Run the stage; answers with its peak memory in bytes, processor seconds, numbers of images and the digest."""
    store = Store(StoreParams(url=str(root / "store"), cache=str(root / "cache"), remote=None))
    inputs = {name: root / name for name in ("crawl", "download", "filter", "dedup", "embed", "evaluation")}
    out = root / f"out-{kind}"
    out.mkdir()
    started = time.process_time()
    summary = run(params(kind, num_images), **inputs, out=out, work=root / f"work-{kind}", store=store)
    peak = peak_bytes()
    digest = hashlib.sha256(b"".join(hashlib.sha256((out / name).read_bytes()).digest() for name in OUTPUTS))
    told = json.dumps(summary.model_dump(), sort_keys=True).encode()
    digest.update(told)
    queue.put((peak, time.process_time() - started, summary.num_in, summary.num_kept, digest.hexdigest()[:12]))


def main() -> None:
    """Print a row for each number of images and each way to choose."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--label", required=True, help="name of the tree, for the first column")
    parser.add_argument("--images", type=int, nargs="+", default=IMAGES)
    parser.add_argument("--append", type=Path, metavar="FILE", help="also put the rows at the end of this file")
    options = parser.parse_args()
    context = get_context("spawn")
    before: dict[str, tuple[int, int]] = {}
    for num_images in options.images:
        with TemporaryDirectory() as folder:
            write_inputs(Path(folder), num_images)
            for kind in ("seeds", "balanced"):
                queue = context.Queue()
                process = context.Process(target=retrieve, args=(Path(folder), kind, num_images, queue))
                process.start()
                peak, cpu_s, num, num_kept, digest = queue.get()
                process.join()
                smaller, least = before.get(kind, (num, peak))
                grown = f"{(peak - least) / (num - smaller):,.0f}" if num > smaller else "-"
                before[kind] = num, peak
                row = f"| {options.label} | {kind} | {num:,} | {num_kept:,} | {peak / 2**20:,.0f} | {grown} "
                row += f"| {cpu_s:.0f} | {digest} |"
                print(row, flush=True)
                if options.append:
                    with options.append.open("a") as file:
                        file.write(row + "\n")


if __name__ == "__main__":
    main()
