"""Peak memory and processor time of what one core does for all images, in crawl, filter and retrieve, as a table.

Run:   PYTHONPATH=. OMP_NUM_THREADS=1 python benchmarks/gather_memory.py > benchmarks/results/gather_memory.md

Parts are made up as the stages write them: for crawl, image URLs of which each stands once and half are answered in a
WARC file, of which one job keeps each once; for filter, random thumbnails under the params of presets/paper-vitg.yaml,
whose hashes one job compares; for retrieve, tables of ids that are aligned, and of which removed rows are written. Each
runs in a process of its own. Bytes and microseconds an image are the growth from one number of images to the next.
"""

import argparse
import hashlib
import json
import time
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa

from benchmarks.peak_memory import peak_bytes
from dinov2.curation.crawl.candidates import ANSWERS, CANDIDATES, SITES, CrawlParams
from dinov2.curation.crawl.unique import keep_once
from dinov2.curation.descriptors import EMBEDDED, store_block
from dinov2.curation.filter.filters import FilterParams
from dinov2.curation.filter.gathering import gather
from dinov2.curation.filter.looks import LOOKED
from dinov2.curation.retrieve.blocks import open_blocks
from dinov2.curation.retrieve.curated import left_out
from dinov2.params import load_section
from dinov2.records import REMOVED, write_json, write_table
from dinov2.store import Store, StoreParams
from dinov2.tables import write_batches, write_pieces

PRESET = Path("presets/paper-vitg.yaml")
IMAGES = (262_144, 1_048_576, 3_145_728)  # the hash is fitted on the first million
PART = 8192


def write_crawl_part(folder: Path, start: int) -> None:
    """As the stage crawl leaves one."""
    urls = [f"http://site-{number % 997}.example/images/{number}.jpg" for number in range(start, start + PART)]
    page = {"page_url": f"http://site.example/{start}", "alt": "a photograph", "reason": None}
    candidates = ({"image": number, "url": url, **page} for number, url in enumerate(urls))
    write_table(folder / "candidates.parquet", CANDIDATES, candidates)
    answers = ({"url": url, "warc": f"{start}.warc.gz", "offset": 7, "is_body": True} for url in urls[::2])
    write_table(folder / "answers.parquet", ANSWERS, answers)
    write_table(folder / "sites.parquet", SITES, [])
    (folder / "counts.json").write_text(json.dumps({"pages": 1}))


def write_filter_part(file: Path, start: int, size_px: int) -> None:
    """As the stage filter leaves one."""
    thumbnails = np.random.default_rng(start).integers(0, 256, (PART, size_px**2), np.uint8)
    about = {"shard": f"{start}.tar", "length": 100_000, "width": 640, "height": 480, "mime": "image/jpeg"}
    rows = (
        {
            "id": hashlib.sha256(str(number).encode()).hexdigest(), "offset": number, **about,
            "url": f"http://pool.example/{number}.jpg", "page_url": "http://pool.example/", "num_faces": 0,
            "thumbnail": thumbnail.tobytes(),
        }
        for number, thumbnail in enumerate(thumbnails, start)
    )  # fmt: skip
    write_table(file, LOOKED, rows)


def write_pool(root: Path, num_images: int) -> None:
    """As embed and dedup leave one, which dropped nothing."""
    store = Store(StoreParams(url=str(root / "store"), cache="", remote=None))
    with write_batches(root / "pool.parquet", EMBEDDED) as table:
        for start in range(0, num_images, PART):
            ids = [hashlib.sha256(str(number).encode()).hexdigest() for number in range(start, start + PART)]
            rows = [{"id": image, "url": f"http://pool.example/{image}.jpg"} for image in ids]
            table.write_table(pa.Table.from_pylist(rows, schema=EMBEDDED))
    vectors = np.broadcast_to(np.array([1, 0], np.float16), (num_images, 2))
    write_json(root / "embeddings.json", {"pool": {"semantic": [store_block(store, root, vectors)]}})


def align(root: Path) -> int:
    """What each process of retrieve does before k-means, and the first one at the end."""
    store, table = Store(StoreParams(url=str(root / "store"), cache="", remote=None)), root / "pool.parquet"
    num = open_blocks(root, "pool", "semantic", table, store).num_rows()
    return write_pieces(root / "out" / "removed.parquet", REMOVED, left_out(table, np.ones(num, np.int8)))


def run(stage: str, root: Path, num_images: int, queue: Any) -> None:
    """Gather the parts below `root`; answers with peak memory in bytes and processor seconds."""
    parts = [root / f"{start:09d}" for start in range(0, num_images, PART)]
    (root / "out").mkdir()
    started = time.process_time()
    if stage == "crawl":
        kept = keep_once(parts, load_section(PRESET, "crawl", CrawlParams), out=root / "out", work=root).num_kept
    elif stage == "retrieve":
        kept = align(root)
    else:
        kept = gather(parts, load_section(PRESET, "filter", FilterParams), root / "out").num_kept
    peak = peak_bytes()
    queue.put((peak, time.process_time() - started, kept))


def measured(stage: str, num_images: int) -> tuple[int, float, int]:
    """Peak memory in bytes, processor seconds, and images kept."""
    size_px = load_section(PRESET, "filter", FilterParams).pca_hash.thumbnail_px
    with TemporaryDirectory() as folder:
        if stage == "retrieve":
            write_pool(Path(folder), num_images)
        for start in range(0, num_images if stage != "retrieve" else 0, PART):
            part = Path(folder) / f"{start:09d}"
            if stage == "crawl":
                part.mkdir()
                write_crawl_part(part, start)
            else:
                write_filter_part(part, start, size_px)
        context = get_context("spawn")
        queue = context.Queue()
        process = context.Process(target=run, args=(stage, Path(folder), num_images, queue))
        process.start()
        answer = queue.get()
        process.join()
    return answer


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs="+", default=IMAGES)
    options = parser.parse_args()
    print("Printed by `python benchmarks/gather_memory.py`: what one core does for all images.\n")
    print("| stage | images | rows | peak MiB | bytes an image more | CPU s | CPU us an image more |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    for stage in ("crawl", "filter", "retrieve"):
        before: tuple[int, int, float] | None = None
        for num in options.images:
            peak, cpu_s, kept = measured(stage, num)
            grown = "- | {:.0f} | -"
            if before is not None:
                more = num - before[0]
                grown = f"{(peak - before[1]) / more:.0f} | {{:.0f}} | {1e6 * (cpu_s - before[2]) / more:.1f}"
            print(f"| {stage} | {num:,} | {kept:,} | {peak / 2**20:.0f} | {grown.format(cpu_s)} |", flush=True)
            before = num, peak, cpu_s


if __name__ == "__main__":
    main()
