"""How well a few seeds find their classes again, hidden in a pool of other images: by sample, by cluster, balanced.

Run:   python benchmarks/retrieval.py --seeds CLASSES --pool FOLDER [FOLDER ...]
           (--backbone FOLDER | --descriptors FILE) [--hidden 10] [--num-seeds 5] [--clusters 50]

`--seeds` is a folder a class. Of `--hidden` classes drawn from those with most images, `--num-seeds` images each are
seeds; the rest lies in the pool, with all images of the other classes and of the `--pool` folders. `--backbone` is a
folder with backbone.safetensors and .json; `--descriptors` an .npy of float rows in the order that `--list` prints.
Precision: share of the retrieved images that are of their seed's class; recall: share of the hidden ones retrieved.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from dinov2.curation.params import BalancedParams, ClusterParams, SeededParams
from dinov2.curation.retrieve.balance import balanced_sample, grow_tree
from dinov2.curation.retrieve.blocks import InMemory, unit
from dinov2.curation.retrieve.cluster import assign, spherical_kmeans
from dinov2.curation.retrieve.seeds import Seeds, retrieve
from dinov2.data.decode import decode_rgb
from dinov2.data.sources import FolderSource
from dinov2.data.view import center_crop
from dinov2.hub import load_backbone

CPU = torch.device("cpu")
Sides = list[tuple[str, NDArray[np.int64], NDArray[np.int64] | None]]


def labelled(classes: Path, pool: list[Path]) -> list[tuple[Path, str | None]]:
    """(file, class) of all images; of no class in the pool's folders."""
    own = FolderSource(classes)
    files: list[tuple[Path, str | None]] = [(classes / name, own.label(i)) for i, name in enumerate(own.files)]
    return files + [(folder / name, None) for folder in pool for name in FolderSource(folder).files]


def embedded(files: list[Path], backbone: Path, size_px: int) -> NDArray[np.float32]:
    """The backbone's class tokens, of unit length."""
    model, card = load_backbone(backbone)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (card.mean, card.std))
    rows = []
    with torch.inference_mode():
        for start in range(0, len(files), 32):
            views = [center_crop(decode_rgb(file.read_bytes()), size_px) for file in files[start : start + 32]]
            rows.append(model((torch.stack(views).float() / 255 - mean) / std).numpy())
    return unit(np.concatenate(rows))


def found(
    vectors: NDArray[np.float32], labels: NDArray[np.str_], is_seed: NDArray[np.bool_], num_clusters: int
) -> Sides:
    """(strategy, rows of the pool, label each was retrieved for; None where it was for none)."""
    pool, seeds = InMemory(vectors[~is_seed].astype(np.float16)), vectors[is_seed]
    clusters = ClusterParams(seed=0, num_clusters=num_clusters, num_iterations=20, precision="fp32")
    centroids = spherical_kmeans(pool, **clusters.model_dump(), device=CPU).centroids
    of_pool, _ = assign(pool, centroids, precision="fp32", device=CPU)
    of_seeds, _ = assign(InMemory(seeds), centroids, precision="fp32", device=CPU)
    given = Seeds(InMemory(seeds), labels[is_seed].tolist(), of_seeds)
    sides: Sides = []
    for num in (4, 16):
        for name, from_many in ((f"sample, N = {num}", 0), (f"cluster, M = {num}", 10**9)):
            params = SeededParams(
                kind="seeds", sample_based_from=from_many, num_neighbors=num, num_from_cluster=num, min_cosine=-1.0,
                max_per_source=None,
            )  # fmt: skip
            choices = retrieve(params, seeds=given, pool=pool, pool_clusters=of_pool, device=CPU)
            sides.append((name, choices.pool, choices.seed))
    num_images = len(sides[-1][1])
    balance = BalancedParams(
        kind="balanced", coarser=[max(1, num_clusters // 5)], num_resamplings=2, num_resampled=10,
        num_images=num_images, pick="closest",
    )  # fmt: skip
    tree = grow_tree(pool, clusters, balance, CPU)
    index, cosine = assign(pool, tree.centroids, precision="fp32", device=CPU)
    sides.append((f"balanced, {num_images}", np.flatnonzero(balanced_sample(tree, index, cosine, balance, 0)), None))
    at_random = np.random.default_rng(0).choice(pool.num_rows(), num_images, replace=False)
    return [*sides, (f"at random, {num_images}", at_random, None)]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=Path, required=True)
    parser.add_argument("--pool", type=Path, nargs="+", default=[])
    parser.add_argument("--backbone", type=Path)
    parser.add_argument("--size-px", type=int, default=64)
    parser.add_argument("--descriptors", type=Path)
    parser.add_argument("--list", action="store_true", help="only print the images, in order")
    parser.add_argument("--hidden", type=int, default=10)
    parser.add_argument("--num-seeds", type=int, default=5)
    parser.add_argument("--clusters", type=int, default=50)
    options = parser.parse_args()
    files = labelled(options.seeds, options.pool)
    if options.list:
        print("\n".join(str(file) for file, _ in files))
        return
    if options.descriptors:
        vectors = unit(np.load(options.descriptors))
    else:
        vectors = embedded([file for file, _ in files], options.backbone, options.size_px)
    labels = np.array([label or "" for _, label in files])
    names, counts = np.unique(labels[labels != ""], return_counts=True)
    rng = np.random.default_rng(0)
    frequent = names[np.argsort(-counts, kind="stable")[: 3 * options.hidden]]
    hidden = rng.choice(frequent, options.hidden, replace=False)
    is_seed = np.zeros(len(labels), bool)
    for name in hidden:
        is_seed[rng.choice(np.flatnonzero(labels == name), options.num_seeds, replace=False)] = True
    wanted = np.isin(labels[~is_seed], hidden)
    print(f"{options.hidden} classes, {options.num_seeds} seeds each; {wanted.sum()} of {len(wanted)} pool images "
          f"({100 * wanted.mean():.1f} %) are theirs; {options.clusters} clusters\n")
    print("| strategy | images | of a hidden class | of the seed's class | recall |\n|---|---|---|---|---|")
    for name, rows, seed in found(vectors, labels, is_seed, options.clusters):
        own = "" if seed is None else f"{100 * (labels[~is_seed][rows] == labels[is_seed][seed]).mean():.1f} %"
        print(f"| {name} | {len(rows)} | {100 * wanted[rows].mean():.1f} % | {own} | "
              f"{100 * wanted[rows].sum() / wanted.sum():.1f} % |")


if __name__ == "__main__":
    main()
