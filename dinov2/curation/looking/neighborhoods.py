"""Seeds beside their nearest pool images, with what became of each: what N, M and the least cosine are set by.

Neighbours are sought among all embedded pool images, so that those which dedup removed are seen too.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from dinov2.curation.looking.chart import Chart, histogram
from dinov2.curation.looking.near import Blocks, nearest
from dinov2.curation.params import InspectParams
from dinov2.lookup import Row, batches, num_rows, rows_at, rows_with
from dinov2.store import Store

CENTROIDS = "centroids.npy"  # beside retrieve's tables: float32 rows, one a cluster
RANKS = (1, 2, 4, 8, 16, 32)


class Neighbor(NamedTuple):
    """A pool image near a seed."""

    id: str
    cosine: float
    cluster: int | None
    status: str  # taken | other | left | gone
    about: str
    witness_id: str | None
    """The image that dedup removed it for."""


class Panel(NamedTuple):
    """A seed and its neighbours, nearest first."""

    id: str
    label: str | None
    cluster: int | None
    brought: str
    neighbors: list[Neighbor]


class RankRow(NamedTuple):
    """What the neighbour of one rank is like, over the sampled seeds."""

    rank: int
    quartiles: tuple[float, float, float]
    share_above: float
    """Of the neighbours of this rank, how many are at or above the least cosine."""
    distinct_a_seed: float
    """Different images that the sampled seeds have up to this rank, a seed: what N = rank would bring in."""


class Neighborhoods(NamedTuple):
    """The page's part about seeds."""

    panels: list[Panel]
    ranks: list[RankRow]
    chart: Chart | None
    num_seeds: int
    num_sampled: int
    num_pool: int
    num_compared: int


def neighborhoods(
    params: InspectParams, *, embed: Path, dedup: Path, retrieve: Path, store: Store, choose: Mapping[str, Any]
) -> Neighborhoods:
    """Panels of seeds spread evenly over those that dedup kept, and ranks of a sample of all that were embedded."""
    table = dedup / "seeds.parquet"
    num_seeds = num_rows(table)
    shown = _evenly(num_seeds, params.num_seeds)
    if num_seeds == 0:
        return Neighborhoods([], [], None, 0, 0, 0, 0)
    seeds = Blocks(embed, "seeds", "semantic", store, max_rows=num_rows(embed / "seeds.parquet"), seed=params.seed)
    pool = Blocks(embed, "pool", "semantic", store, max_rows=params.max_rows, seed=params.seed)
    shown_rows = rows_at(table, shown)
    vectors = seeds.rows.take(_rows_in(embed / "seeds.parquet", [row["id"] for row in shown_rows]))
    cosine, index = nearest(vectors, pool, params.num_neighbors)
    centroids = np.load(retrieve / CENTROIDS, mmap_mode="r") if (retrieve / CENTROIDS).exists() else None
    panels = _panels(shown_rows, cosine, index, embed=embed, dedup=dedup, retrieve=retrieve)
    if centroids is not None:
        panels = _with_clusters(panels, vectors, index, pool, np.asarray(centroids, np.float32))
    sampled = seeds.draw_rows(params.num_sampled, params.seed)
    sampled_cosine, sampled_index = nearest(seeds.rows.take(sampled), pool, max(RANKS))
    least = choose.get("min_cosine")
    chart = histogram(sampled_cosine[:, 0], {"min_cosine": least} if least is not None and least > -1 else {})
    ranks = _ranks(sampled_cosine, sampled_index, -1.0 if least is None else least)
    return Neighborhoods(panels, ranks, chart, len(seeds.rows), len(sampled), len(pool.rows), pool.num_chosen)


def _evenly(total: int, num: int) -> list[int]:
    return sorted(set(np.linspace(0, total - 1, min(num, total)).round().astype(int).tolist())) if total and num else []


def _rows_in(table: Path, ids: list[str]) -> NDArray[np.int64]:
    """The places of these images in the table."""
    place, start = {}, 0
    wanted = set(ids)
    for batch in batches(table, ["id"]):
        values = batch["id"].to_pylist()
        place |= {value: start + i for i, value in enumerate(values) if value in wanted}
        start += len(values)
    return np.array([place[image] for image in ids], np.int64)


def _panels(
    seeds: list[Row], cosine: NDArray[np.float32], index: NDArray[np.int64], *, embed: Path, dedup: Path, retrieve: Path
) -> list[Panel]:
    places = np.unique(index)
    found = rows_at(embed / "pool.parquet", places.tolist())
    ids = {place: row["id"] for place, row in zip(places.tolist(), found, strict=True)}
    near = set(ids.values())
    taken = {row["id"]: row for row in rows_with(retrieve / "manifest.parquet", "id", near) if row["origin"] != "seed"}
    gone = {row["id"]: row for row in rows_with(dedup / "removed.parquet", "id", near)}
    left = {row["id"]: row for row in rows_with(retrieve / "removed.parquet", "id", near)}
    own = {row["id"]: row for row in rows_with(retrieve / "manifest.parquet", "id", {row["id"] for row in seeds})}
    brought: dict[str, list[Row]] = {}
    for row in rows_with(retrieve / "manifest.parquet", "seed_id", {row["id"] for row in seeds}):
        if row["origin"] != "seed":
            brought.setdefault(row["seed_id"], []).append(row)
    panels = []
    for place, seed in enumerate(seeds):
        neighbors = []
        for row, value in zip(index[place].tolist(), cosine[place].tolist(), strict=True):
            image = ids[row]
            cluster = taken[image]["cluster"] if image in taken else None
            status, about, witness = _status(seed["id"], taken.get(image), gone.get(image), left.get(image))
            neighbors.append(Neighbor(image, value, cluster, status, about, witness))
        cluster = own[seed["id"]]["cluster"] if seed["id"] in own else None
        panels.append(Panel(seed["id"], seed["label"], cluster, _brought(brought.get(seed["id"], [])), neighbors))
    return panels


def _status(seed: str, taken: Row | None, gone: Row | None, left: Row | None) -> tuple[str, str, str | None]:
    """Class, words and witness of a neighbour's fate."""
    if taken and taken["seed_id"] in (seed, None):  # None: taken for no seed
        return "taken", f"taken, {taken['origin']}", None
    if taken:
        return "other", f"another's, {taken['origin']} {taken['cosine']:.3f}", None
    if gone:
        cosine = "" if gone["cosine"] is None else f" {gone['cosine']:.3f}"
        return "gone", f"{gone['reason'].replace('_', ' ')}{cosine}", gone["witness_id"]
    return "left", left["reason"].replace("_", " ") if left else "not looked at", None


def _brought(rows: list[Row]) -> str:
    origins = {row["origin"] for row in rows}
    return f"brought in {len(rows)}" + (f" ({', '.join(sorted(origins))})" if origins else "")


def _with_clusters(
    panels: list[Panel],
    vectors: NDArray[np.float32],
    index: NDArray[np.int64],
    pool: Blocks,
    centroids: NDArray[np.float32],
) -> list[Panel]:
    """The panels with the cluster of every image, the taken and the others."""
    places = np.unique(index)
    of_row = dict(zip(places.tolist(), (pool.rows.take(places) @ centroids.T).argmax(axis=1).tolist(), strict=True))
    of_seed = (vectors @ centroids.T).argmax(axis=1).tolist()
    return [
        panel._replace(
            cluster=of_seed[i],
            neighbors=[near._replace(cluster=of_row[row]) for near, row in zip(panel.neighbors, index[i], strict=True)],
        )
        for i, panel in enumerate(panels)
    ]


def _ranks(cosine: Float[np.ndarray, "s k"], index: NDArray[np.int64], least: float) -> list[RankRow]:
    rows = []
    for rank in RANKS:
        if rank <= cosine.shape[1] and len(cosine):
            column = cosine[:, rank - 1]
            near = index[:, :rank][cosine[:, :rank] >= least]
            low, middle, high = np.quantile(column, (0.25, 0.5, 0.75)).tolist()
            share = float((column >= least).mean())
            rows.append(RankRow(rank, (low, middle, high), share, len(np.unique(near)) / len(cosine)))
    return rows
