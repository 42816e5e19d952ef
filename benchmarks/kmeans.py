"""Our spherical k-means beside faiss's: time and objective of 100,000 vectors of 384 numbers in 1,000 clusters.

Run:   python benchmarks/kmeans.py --images FOLDER [FOLDER ...] [--rounds 3] [--threads 1]

The sides take turns, with the same number of iterations at most. Both objectives are the mean cosine of all vectors to
the nearest of the final centroids, computed alike. `crops` are thumbnail descriptors of random crops of the images;
`clustered` scatters around 1,500 centres, `uniform` around none. Ours includes its k-means++, faiss starts from random
vectors. Set OMP_WAIT_POLICY=PASSIVE where other work runs beside it, or threads that wait count as busy.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import faiss
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from dinov2.curation.embed.thumbnail import Thumbnails, fit, moments, whiten
from dinov2.curation.params import ThumbnailParams
from dinov2.curation.retrieve.blocks import InMemory
from dinov2.curation.retrieve.cluster import assign, spherical_kmeans
from dinov2.curation.retrieve.nearest import on_grid
from dinov2.data.sources import FolderSource
from dinov2.heap import keep_heap

NUM, DIMS, CLUSTERS = 100_000, 384, 1000
CPU = torch.device("cpu")
Vectors = NDArray[np.float16]


def unit(vectors: NDArray[np.floating]) -> Vectors:
    """Float16 rows of unit length, as the stage embed leaves them."""
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16)


def crops(folders: list[Path]) -> Vectors:
    """Descriptors of random crops, the same number of every fourth image."""
    rng = np.random.default_rng(0)
    files = [folder / name for folder in folders for name in FolderSource(folder).files[::4]]
    params = ThumbnailParams(kind="thumbnail", size_px=16, dims=DIMS, shrinkage=0.1)
    thumbnails = Thumbnails(params)
    small = []
    for file in files:
        image = Image.open(file).convert("RGB")
        image.thumbnail((160, 160))
        for _ in range(-(-NUM // len(files))):
            share = rng.uniform(0.35, 1) ** 0.5
            width, height = max(16, int(image.width * share)), max(16, int(image.height * share))
            x, y = int(rng.uniform(0, image.width - width + 1)), int(rng.uniform(0, image.height - height + 1))
            small.append(thumbnails.prepare(np.asarray(image.crop((x, y, x + width, y + height)))))
    rows = thumbnails.encode(small[:NUM])
    return unit(whiten(rows, fit(moments(rows), params)))


def drawn(num_centres: int) -> Vectors:
    """Random directions, around random centres if there are any."""
    rng = np.random.default_rng(1)
    vectors = rng.standard_normal((NUM, DIMS), np.float32)
    if num_centres:
        centres = rng.standard_normal((num_centres, DIMS), np.float32)
        vectors = centres[rng.integers(0, num_centres, NUM)] + 0.8 * vectors
    return unit(vectors)


def sides(vectors: Vectors, iterations: int) -> Iterator[tuple[str, Callable[[], NDArray[np.float32]]]]:
    """Name and work of each; the work returns centroids."""
    longer = vectors.astype(np.float32)

    def theirs() -> NDArray[np.float32]:
        kmeans = faiss.Kmeans(DIMS, CLUSTERS, niter=iterations, spherical=True, seed=1)
        kmeans.train(longer)
        return on_grid(torch.from_numpy(kmeans.centroids)).numpy()

    yield "faiss.Kmeans", theirs
    for precision in ("bf16", "fp32"):
        yield f"ours, {precision}", lambda precision=precision: spherical_kmeans(
            InMemory(vectors), num_clusters=CLUSTERS, num_iterations=iterations, seed=0, precision=precision, device=CPU
        ).centroids


def measured(vectors: Vectors, rounds: int, iterations: int) -> Iterator[str]:
    """Lines of the table."""
    work = dict(sides(vectors, iterations))
    wall: dict[str, list[float]] = {name: [] for name in work}
    busy: dict[str, list[float]] = {name: [] for name in work}
    found = {}
    for _ in range(rounds):
        for name, run in work.items():
            started, used = time.perf_counter(), time.process_time()
            found[name] = run()
            wall[name].append(time.perf_counter() - started)
            busy[name].append(time.process_time() - used)
    objective = {
        name: float(assign(InMemory(vectors), centroids, precision="fp32", device=CPU)[1].mean(dtype=np.float64))
        for name, centroids in found.items()
    }
    for name in work:
        beside = objective[name] / objective["faiss.Kmeans"] - 1
        yield (
            f"{name} | {statistics.median(wall[name]):.1f} ({min(wall[name]):.1f}-{max(wall[name]):.1f}) | "
            f"{statistics.median(busy[name]):.1f} ({min(busy[name]):.1f}-{max(busy[name]):.1f}) | "
            f"{objective[name]:.5f} | {100 * beside:+.2f} %"
        )


def main() -> None:
    """Print the table, row by row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, nargs="+", required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--iterations", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    keep_heap()
    torch.set_num_threads(options.threads)
    faiss.omp_set_num_threads(options.threads)
    print(f"{NUM} x {DIMS}, {CLUSTERS} clusters, at most {options.iterations} iterations, {options.threads} threads, "
          f"median (range) of {options.rounds} rounds by turns\n")
    print("| vectors | side | wall s | CPU s | objective | beside faiss |\n|---|---|---|---|---|---|")
    kinds = {"crops": lambda: crops(options.images), "clustered": lambda: drawn(1500), "uniform": lambda: drawn(0)}
    for kind, make in kinds.items():
        for line in measured(make(), options.rounds, options.iterations):
            print(f"| {kind} | {line} |", flush=True)


if __name__ == "__main__":
    main()
