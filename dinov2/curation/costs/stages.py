"""Work of each stage of the curation, phase by phase, by counted formulas: operations, bytes, memory, parts.

Products are counted at 2 operations a multiplication. Memory is that of one process, of its arrays alone. What no
formula gives, the seconds of a core an image, comes from the measured rates.
"""

from collections.abc import Callable
from math import ceil
from typing import NamedTuple

from dinov2.curation.costs.rates import Rates
from dinov2.curation.costs.sizes import Sizes

RECORD_BYTES = 130
"""A row of URLs, compressed; assumed: the demo's, whose URLs are short, have 32."""
ROW_BYTES = 120
"""A row of a manifest, compressed: the demo's have 92 to 133."""
URL_MEMORY, URL_S = 160, 8.3e-6
"""Of a URL that was seen, in a table of hashes; and a core's seconds. Measured: benchmarks/results/gather_memory.md."""
HASH_MEMORY, HASH_S = 183, 8.0e-6
"""Of an image whose hash is compared; and a core's seconds. Measured: benchmarks/results/gather_memory.md."""
PAIR_MEMORY = 300
"""Of an image that has a copy, where components are found."""
RETRIEVED_ROWS, PACKED_SHARDS, TAKEN_AT_ONCE = 16384, 8, 2**22
"""Of retrieve: rows of a block, shards of a part, neighbours looked for at a time; there BLOCK_ROWS, SHARDS_A_PART and
PIECE."""
IMAGE_MEMORY, SEED_MEMORY, CANDIDATE_MEMORY = 150, 100, 100
"""Of an image, a seed and a neighbour in every process of retrieve; the first is measured, the others are counted from
their arrays, sorting included: benchmarks/results/retrieve_memory.md."""
GROUP_MEMORY = 1e9
"""Of a row group of a table that is written, at most."""
ROW_MEMORY, OUTCOME_MEMORY = 2000, 1200
"""Of a row of a table as Python objects: those of one part; and of a fetched image, in its host's part. Estimates."""
BODY_MEMORY = 2**20
"""Of a connection, at most; there IN_MEMORY_BYTES. One body at a time is held whole besides."""
FLOAT16, FLOAT32 = 2, 4


class Work(NamedTuple):
    """What one phase of a stage does in all."""

    phase: str
    flops: float = 0.0
    core_s: float = 0.0
    """Seconds of one core, where a rate was measured."""
    fetched: float = 0.0
    """Bytes over the public network."""
    read: float = 0.0
    written: float = 0.0
    memory: float = 0.0
    """Bytes of a process; 0: that of a few images."""
    parts: int = 1
    lone_s: float = 0.0
    """Seconds of one core that no other can help."""
    core_flops: float | None = None
    """Operations a second of a core, where they were measured for this; None: those of products alone."""
    on_gpu: bool = False
    """Whether a GPU does the products, where there is one."""
    before_jobs: bool = False
    """Whether the submitting process does it, at its first start, before there is a job."""


def crawl(sizes: Sizes, rates: Rates) -> list[Work]:
    """Pages are parsed, each URL is kept once."""
    a = sizes.assumed
    pages, records = a.images / a.images_per_page, a.images * RECORD_BYTES
    html = pages * a.page_kb * 1e3
    return [
        Work("hashing the crawl", read=html, before_jobs=True),
        Work("pages", core_s=pages / rates.crawl, read=html, written=records, parts=_parts(html / 1e6, sizes.crawl_mb)),
        Work("each URL once", read=records, written=records, memory=a.images * URL_MEMORY, lone_s=a.images * URL_S),
    ]


def download(sizes: Sizes, rates: Rates) -> list[Work]:
    """Images are fetched and packed; the bytes are written as parts and read once more into shards."""
    a = sizes.assumed
    stored = a.images * a.image_kb * 1e3
    records = min(sizes.record_rows or a.images, a.images) * ROW_MEMORY
    bodies = sizes.connections * min(BODY_MEMORY, sizes.max_image_bytes) + sizes.max_image_bytes
    return [
        Work("fetch", core_s=a.images / rates.download, fetched=stored, written=2 * stored, read=stored,
             memory=max(records, a.images / sizes.host_parts * OUTCOME_MEMORY + bodies),
             parts=_parts(a.images, sizes.record_rows)),
    ]  # fmt: skip


def filter(sizes: Sizes, rates: Rates) -> list[Work]:
    """Every image is decoded and looked at once; hashes are compared by the job that gathers."""
    a = sizes.assumed
    part = min(sizes.filter_rows or a.images, a.images)
    return [
        Work("looks", core_s=a.images / rates.filter, read=a.images * a.image_kb * 1e3, written=a.images * ROW_BYTES,
             memory=part * ROW_MEMORY, parts=_parts(a.images, part)),
        Work("hashes", read=a.images * (sizes.hash_bytes + ROW_BYTES), written=a.images * ROW_BYTES,
             memory=a.images * HASH_MEMORY, lone_s=a.images * HASH_S),
    ]  # fmt: skip


def embed(sizes: Sizes, rates: Rates) -> list[Work]:
    """Every image is decoded once and goes through two networks."""
    a = sizes.assumed
    images, dims = a.images + a.seeds + a.evaluation, sizes.copy_dims + sizes.semantic_dims
    return [
        Work("hashing seeds", read=(a.seeds + a.evaluation) * a.image_kb * 1e3, before_jobs=True),
        Work("descriptors", flops=images * (sizes.copy_gflop + sizes.semantic_gflop) * 1e9, core_s=images / rates.embed,
             read=images * a.image_kb * 1e3, written=images * (dims * FLOAT16 + ROW_BYTES),
             memory=min(sizes.embed_rows, images) * dims * FLOAT32, parts=_parts(images, sizes.embed_rows),
             on_gpu=True),
    ]  # fmt: skip


def dedup(sizes: Sizes, rates: Rates) -> list[Work]:
    """All pairs of blocks; the exact join, which is the most that any method costs."""
    a = sizes.assumed
    rows = a.images + a.seeds
    blocks, block_rows = _parts(rows, sizes.block_rows), min(sizes.block_rows or rows, rows)
    block_bytes, memory = block_rows * sizes.copy_dims * FLOAT16, block_rows * sizes.copy_dims * 16
    looks = a.evaluation + sizes.sample_rows
    copies = rows * a.with_copies
    return [
        Work("looks", flops=2 * rows * looks * sizes.copy_dims, read=rows * sizes.copy_dims * FLOAT16, memory=memory,
             parts=blocks, core_flops=rates.join_flops, on_gpu=True),
        Work("join, exact", flops=rows * rows * sizes.copy_dims, read=blocks * (blocks + 1) * block_bytes,
             written=copies * 24, memory=memory, parts=blocks * (blocks + 1) // 2,
             core_flops=rates.join_flops, on_gpu=True),
        Work("components", read=copies * 24 + rows * ROW_BYTES, written=rows * ROW_BYTES, memory=copies * PAIR_MEMORY),
    ]  # fmt: skip


def retrieve(sizes: Sizes, _: Rates) -> list[Work]:
    """k-means in which every vector meets every centroid each time, then seeds against the pool, then packing."""
    a = sizes.assumed
    vectors = a.images * sizes.semantic_dims * FLOAT16
    centroids = sizes.num_clusters * sizes.semantic_dims
    block = min(RETRIEVED_ROWS, a.images) * sizes.semantic_dims * FLOAT32
    passes, blocks = sizes.num_iterations + 1, _parts(a.images, RETRIEVED_ROWS)
    tables, sample = a.images * IMAGE_MEMORY + a.seeds * SEED_MEMORY, 16 * centroids * FLOAT32
    taken = a.seeds * sizes.neighbors
    searches, at_once = max(1, ceil(taken / TAKEN_AT_ONCE)), min(taken, TAKEN_AT_ONCE)
    seeds = min(a.seeds, TAKEN_AT_ONCE / max(1, sizes.neighbors)) * sizes.semantic_dims * (FLOAT16 + 2 * FLOAT32)
    stored = (a.images * a.chosen + a.seeds) * a.image_kb * 1e3
    part_mb = PACKED_SHARDS * sizes.shard_mb
    part_rows = min(a.images * a.chosen + a.seeds, part_mb * 1e3 / a.image_kb)
    return [
        Work("k-means", flops=2 * a.images * centroids * passes, read=vectors * passes, written=4 * a.images,
             memory=centroids * (FLOAT32 + 8) + sample + block + tables, parts=blocks, on_gpu=True),
        Work("neighbours", flops=2 * a.seeds * vectors / FLOAT16, read=vectors * searches, written=taken * 16,
             memory=seeds + at_once * CANDIDATE_MEMORY + block + tables, parts=blocks, on_gpu=True),
        Work("packing", read=stored, written=stored,
             memory=part_rows * ROW_MEMORY + tables + min(GROUP_MEMORY, a.images * ROW_MEMORY),
             parts=_parts(stored / 1e6, part_mb)),
    ]  # fmt: skip


STAGES: dict[str, Callable[[Sizes, Rates], list[Work]]] = {
    "crawl": crawl, "download": download, "filter": filter, "embed": embed, "dedup": dedup, "retrieve": retrieve,
}  # fmt: skip


def _parts(rows: float | int, part_rows: float | int) -> int:
    """Parts of so many rows; one where the stage does not divide."""
    return ceil(rows / part_rows) if part_rows else 1
