"""Pairs of images around the thresholds of dedup: what was taken for a copy only just, and what was only just not.

Removed pairs come from dedup's tables. Kept ones are not in any table: a sample of the pool is compared with the rest
of it, and with the evaluation images, by their copy descriptors.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dinov2.curation.dedup.decontaminate import set_of_each
from dinov2.curation.descriptors import open_rows
from dinov2.curation.looking.chart import Chart, histogram
from dinov2.curation.looking.near import Blocks, nearest
from dinov2.curation.params import InspectParams
from dinov2.lookup import batches, rows_at, rows_with
from dinov2.store import Store

BAND = 0.1  # of cosine, on either side of a threshold
NEIGHBORS = 4  # of a sampled image, among which its kept pairs are


class Threshold(NamedTuple):
    """From which cosine on an image is removed, and as what."""

    title: str
    reason: str
    min_cosine: float
    folder: str | None
    """Of an evaluation set, below the evaluation images; None: the pool is compared with itself."""


class Pair(NamedTuple):
    """Two images and how alike they are."""

    id: str
    witness_id: str
    cosine: float


class Borderline(NamedTuple):
    """The page's part about one threshold."""

    threshold: Threshold
    removed: list[Pair]
    """The first was removed because of the second; ascending in cosine."""
    kept: list[Pair]
    """Both stayed, or the second is an evaluation image; ascending in cosine."""
    num_removed: int
    chart: Chart | None
    """Of each sampled image the cosine to its nearest other one."""


def thresholds(dedup: Mapping[str, Any]) -> list[Threshold]:
    """Those of the params of dedup."""
    sets = dedup.get("evaluation_sets", {}).items()
    return [
        Threshold("Copies", "copy", dedup["min_cosine"], None),
        *(
            Threshold(f"Copies of evaluation images: {name}", f"evaluation_copy:{name}", of["min_cosine"], of["folder"])
            for name, of in sets
        ),
    ]


def borderlines(
    params: InspectParams, asked: list[Threshold], *, embed: Path, dedup: Path, store: Store
) -> list[Borderline]:
    """A part for every threshold; all compare the same sample of the pool."""
    pool = Blocks(embed, "pool", "copy", store, max_rows=params.max_rows, seed=params.seed)
    held_out = open_rows(embed, ["evaluation"], "copy", store)
    folders = {one.reason: one.folder for one in asked if one.folder is not None}
    homes = set_of_each(embed, folders) if folders else np.empty(0, np.int64)
    sampled = pool.draw_rows(params.num_sampled, params.seed)
    vectors = pool.rows.take(sampled)
    parts = []
    for threshold in asked:
        if threshold.folder is None:
            cosine, index = nearest(vectors, pool, NEIGHBORS, leave_out=sampled)
            name = "pool"
        else:
            rows = np.flatnonzero(homes == list(folders).index(threshold.reason))
            cosine, index = nearest(vectors, [(0, held_out.take(rows))] if len(rows) else [], NEIGHBORS)
            index, name = rows[index] if len(rows) else index, "evaluation"
        kept = _kept(params, cosine, sampled, index, threshold.min_cosine, embed=embed, dedup=dedup, name=name)
        removed, num_removed = _removed(params, dedup / "removed.parquet", threshold.reason, threshold.min_cosine)
        chart = histogram(cosine[:, :1].ravel(), {"threshold": threshold.min_cosine})
        parts.append(Borderline(threshold, removed, kept, num_removed, chart))
    return parts


def _removed(params: InspectParams, table: Path, reason: str, threshold: float) -> tuple[list[Pair], int]:
    """One pair a step, half of the steps in the band above the threshold, half above it; and how many there are."""
    far = params.num_pairs // 2
    middle = threshold + min(BAND, (1 - threshold) / 2)
    near_edges = np.linspace(threshold, middle, params.num_pairs - far, endpoint=False)
    edges = np.concatenate([near_edges, np.linspace(middle, 1, far, endpoint=False)])
    rng = np.random.Generator(np.random.PCG64(params.seed))
    best: dict[int, tuple[float, int]] = {}
    num, start = 0, 0
    for batch in batches(table, ["reason", "cosine"]):
        cosine = np.array(batch["cosine"].to_pylist(), np.float64)  # null as NaN
        here = np.array([value == reason for value in batch["reason"].to_pylist()], bool)
        num += int(here.sum())
        drawn = rng.random(len(cosine))
        step = np.searchsorted(edges, cosine + 1e-6, side="right") - 1
        for place in np.flatnonzero(here & np.isfinite(cosine) & (step >= 0)).tolist():
            key = int(step[place])
            best[key] = min(best.get(key, (2.0, -1)), (float(drawn[place]), start + place))
        start += len(cosine)
    rows = rows_at(table, [place for _, place in best.values()])
    pairs = [Pair(row["id"], row["witness_id"], row["cosine"]) for row in rows]
    return sorted(pairs, key=lambda pair: pair.cosine), num


def _kept(
    params: InspectParams,
    cosine: NDArray[np.float32],
    first: NDArray[np.int64],
    second: NDArray[np.int64],
    threshold: float,
    *,
    embed: Path,
    dedup: Path,
    name: str,
) -> list[Pair]:
    """One sampled pair a step of the band below the threshold, of which both stayed, ascending in cosine."""
    edges = np.linspace(threshold - BAND, threshold, params.num_pairs + 1)
    row, rank = np.nonzero((cosine >= edges[0]) & (cosine < threshold))
    left, right = _ids(embed / "pool.parquet", first[row]), _ids(embed / f"{name}.parquet", second[row, rank])
    tested = {*left.values(), *(right.values() if name == "pool" else ())}  # an evaluation image is never removed
    gone = {row["id"] for row in rows_with(dedup / "removed.parquet", "id", tested)}
    steps: dict[int, Pair] = {}
    seen: set[frozenset[str]] = set()
    for i, j in zip(row.tolist(), rank.tolist(), strict=True):
        pair = Pair(left[int(first[i])], right[int(second[i, j])], float(cosine[i, j]))
        both = frozenset(pair[:2])
        if gone.isdisjoint(both) and both not in seen:
            seen.add(both)
            steps.setdefault(int(np.searchsorted(edges, pair.cosine, side="right")), pair)
    return [steps[step] for step in sorted(steps)]


def _ids(table: Path, places: NDArray[np.int64]) -> dict[int, str]:
    rows = np.unique(places).tolist()
    return dict(zip(rows, [row["id"] for row in rows_at(table, rows)], strict=True))
