"""Peak memory of finishing the embed stage's blocks, which must not grow with their number, as a Markdown table.

Run:   OMP_NUM_THREADS=1 python benchmarks/embed_memory.py --out benchmarks/results/embed-memory.md

Blocks of random thumbnails are written as the stage writes them; then, in a process of its own, the whitening is
fitted, all blocks are finished, and their tables are joined. Needs some 300 MB of disk a block.
"""

import argparse
import hashlib
import resource
import sys
import time
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from dinov2.curation.descriptors import EMBEDDED
from dinov2.curation.embed.embedder import Block, save_block, unit
from dinov2.curation.embed.finish import finish_block, fit, gather
from dinov2.curation.embed.sets import Span
from dinov2.curation.params import ThumbnailParams
from dinov2.store import Store, StoreParams

BLOCK_ROWS = 65_536  # as in presets/paper-vitl.yaml
NUM_BLOCKS = (1, 2, 4)
DIMS = 768  # of a semantic descriptor
THUMBNAIL = ThumbnailParams(kind="thumbnail", size_px=16, dims=128, shrinkage=0.1)


def spans(num_blocks: int) -> list[Span]:
    """The blocks of a pool."""
    return [Span("pool", number, number * BLOCK_ROWS, (number + 1) * BLOCK_ROWS) for number in range(num_blocks)]


def write_blocks(work: Path, num_blocks: int) -> None:
    """Blocks as the stage leaves them."""
    draw = np.random.default_rng(0)
    about = {"mime": "image/jpeg", "width": 640, "height": 480, "length": 100_000}
    for span in spans(num_blocks):
        indices = range(span.start, span.stop)
        samples = [{"index": i, "id": hashlib.sha256(str(i).encode()).hexdigest(), **about} for i in indices]
        semantic, _ = unit(draw.standard_normal((BLOCK_ROWS, DIMS), np.float32))
        encoded = draw.standard_normal((BLOCK_ROWS, 3 * THUMBNAIL.size_px**2), np.float32)
        save_block(span.file(work / "blocks", ".npz"), Block(samples, [], semantic, encoded), with_moments=True)


def finish(work: Path, num_blocks: int, queue: Any) -> None:
    """What the stage does after embedding."""
    started = time.process_time()
    store = Store(StoreParams(url=str(work / "store"), cache=str(work / "cache"), remote=None))
    pool = spans(num_blocks)
    files = {"pool": [span.file(work / "blocks", ".npz") for span in pool]}
    fit(files, THUMBNAIL, work / "fitted", num_rows={"pool": pool[-1].stop})
    unknown: dict[str, Any] = dict.fromkeys(EMBEDDED.names)
    for span in pool:
        about = ({"shard": "a.tar", "offset": i, "url": f"http://pool.example/{i}"} for i in range(BLOCK_ROWS))
        origin = [{**unknown, **row} for row in about]
        finish_block(span, origin, params=THUMBNAIL, work=work, store=store, drop_repeated=True, pack=None)
    assert gather("pool", pool, work, work / "out").num_kept == pool[-1].stop
    queue.put((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, time.process_time() - started))


def main() -> None:
    """Print the table, and write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    lines = [
        f"Printed by `python benchmarks/embed_memory.py`: blocks of {BLOCK_ROWS} images.",
        "",
        "| blocks | images | peak GiB of fit, finish and gather | CPU s |",
        "|---|---|---|---|",
    ]
    context = get_context("spawn")
    for num_blocks in NUM_BLOCKS:
        with TemporaryDirectory() as folder:
            write_blocks(Path(folder), num_blocks)
            queue = context.Queue()
            process = context.Process(target=finish, args=(Path(folder), num_blocks, queue))
            process.start()
            peak_gib, cpu_s = queue.get()
            process.join()
        lines.append(f"| {num_blocks} | {num_blocks * BLOCK_ROWS} | {peak_gib:.2f} | {cpu_s:.0f} |")
        print(lines[-1], file=sys.stderr)
    options.out.write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
