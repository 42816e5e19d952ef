"""What the search for copies among PCA hashes costs: 10^5, 10^6, ... hashes of crops of real photographs.

    python -m benchmarks.filter_copies FOLDER [FOLDER ...] --nums 100000 1000000

Thumbnails of random crops (30 to 100 % of each side) of the photographs are hashed as the filter does; some crops are
nearly the same, most are not, and the hashes have the correlations and the frequent values of real ones. Prints the
second table of benchmarks/results/filter.md; memory is the process's peak, the hashes themselves included. At 2,000
hashes the result is compared with brute force first.
"""

import argparse
import multiprocessing
import resource
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dinov2.curation.filter.hamming import find_copies
from dinov2.curation.filter.hashing import PcaHashParams, fit_pca_hash

PARAMS = PcaHashParams(num_bits=64, thumbnail_px=16, sample_size=20_000, max_hamming_bits=6)
LIMITS = (0, 4, 6)
NUM_PHOTOGRAPHS = 4000
PHOTOGRAPH_PX = 96
BLOCK = 20_000


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--nums", type=int, nargs="+", default=[100_000, 1_000_000])
    options = parser.parse_args()
    check(hashes_of(options.folders, 2000))
    print("| hashes | bits that may differ | CPU seconds | peak memory | copies |\n|---|---|---|---|---|", flush=True)
    context = multiprocessing.get_context("spawn")
    for num in options.nums:
        with context.Pool(1) as pool:  # a process a size, so that its peak is its own
            for limit, seconds, peak_mb, share in pool.apply(measure, (options.folders, num)):
                print(f"| {num:,} | {limit} | {seconds:.1f} | {peak_mb:.0f} MB | {share:.1%} |", flush=True)


def measure(folders: list[Path], num: int) -> list[tuple[int, float, float, float]]:
    """Limit, CPU seconds, peak megabytes so far and share of copies, for each limit."""
    hashes = hashes_of(folders, num)
    rows = []
    for limit in LIMITS:
        started = time.process_time()
        copies = find_copies(hashes, np.arange(num), max_hamming_bits=limit)
        peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
        rows.append((limit, time.process_time() - started, peak_mb, float((copies >= 0).mean())))
    return rows


def hashes_of(folders: list[Path], num: int) -> NDArray[np.uint8]:
    """Hashes of `num` random crops, fitted on the first ones."""
    files = sorted(path for folder in folders for path in folder.rglob("*.jpg"))
    chosen = np.unique(np.linspace(0, len(files) - 1, NUM_PHOTOGRAPHS).astype(int))
    photographs = [Image.open(files[i]).convert("L").resize((PHOTOGRAPH_PX, PHOTOGRAPH_PX)) for i in chosen]
    generator = np.random.default_rng(0)
    fitted, hashes = None, []
    for start in range(0, num, BLOCK):
        size = min(BLOCK, num - start)
        thumbnails = np.empty((size, 16, 16), np.uint8)
        for row, photograph in enumerate(generator.integers(0, len(photographs), size)):
            side = generator.uniform(0.3, 1.0, 2) * PHOTOGRAPH_PX
            left, top = generator.uniform(0, PHOTOGRAPH_PX - side)
            box = (left, top, left + side[0], top + side[1])
            thumbnails[row] = photographs[photograph].resize((16, 16), Image.Resampling.BOX, box)
        fitted = fitted or fit_pca_hash(thumbnails, PARAMS)
        hashes.append(fitted.hash(thumbnails))
    return np.concatenate(hashes)


def check(hashes: NDArray[np.uint8]) -> None:
    """Compare with brute force."""
    bits = np.unpackbits(hashes, axis=1).astype(np.int64)
    distance = bits @ (1 - bits).T + (1 - bits) @ bits.T
    kept: list[int] = []
    for index in range(len(hashes)):
        if not kept or distance[index, kept].min() > PARAMS.max_hamming_bits:
            kept.append(index)
    copies = find_copies(hashes, np.arange(len(hashes)), max_hamming_bits=PARAMS.max_hamming_bits)
    assert np.flatnonzero(copies < 0).tolist() == kept


if __name__ == "__main__":
    main()
