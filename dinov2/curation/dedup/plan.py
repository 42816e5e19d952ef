"""Which join a set of rows gets: decided on a sample that was joined exactly, by counts and never by a clock.

Costs are counted in dimensions: multiplications a pair of rows. `exact` costs d. `rotation` costs the e dimensions of
its codes and VERIFY_DIMS for every pair that passes; e is the cheapest of a few. `cells` compares rows only with those
of the cells that they visit, all d dimensions.

The rule. A rotation is made to find `min_recall` of the pairs at the threshold, which is known beforehand; if its
recall on the sample is below that nonetheless, it is tightened: half as many of those pairs may be missed. Of `cells`
nothing is known beforehand, so the lower bound of the recall must be `min_recall`; as few are visited as this allows.
`auto` takes the cheapest method that passes; one named by params that can't pass gives way to `exact`, and says so.
"""

import json
import logging
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Int
from numpy.typing import NDArray

from dinov2.curation.dedup import cells
from dinov2.curation.dedup.join import EXACT, Screen, merged
from dinov2.curation.dedup.pairs import load_pairs
from dinov2.curation.dedup.products import VERIFY_DIMS
from dinov2.curation.dedup.recall import Recall, recall, sampled_rows
from dinov2.curation.dedup.rotation import MAX_DIMS, encode, random_frame, score_for
from dinov2.curation.descriptors import Rows
from dinov2.records import write_json

log = logging.getLogger(__name__)

Method = Literal["exact", "rotation", "cells", "faiss"]
NUM_DIRECTIONS = (32, 48, 64, 80, 96, 112, 128, 160, 192, 256, 320, 384, 512, 768, 1024)
STRANGERS = (512, 8192)  # rows whose products tell how many strangers pass a screen
TIGHTER = 6  # times that a rotation is tightened
MAX_PAIRS = 2**16


class Plan(NamedTuple):
    """A join, and what the sample says of it."""

    method: Method
    screen: Screen
    centroids: NDArray[np.float32] | None
    num_visits: int
    """Cells that a row visits; 0 where there are none."""
    recall: Recall


class Sample(NamedTuple):
    """True pairs of sampled rows: (sampled row, any other row), both as numbers of rows."""

    first: Int[np.ndarray, " p"]
    second: Int[np.ndarray, " p"]


def choose_plan(
    rows: Rows, sample: Sample, *, method: Literal["auto"] | Method, min_cosine: float, min_recall: float, seed: int
) -> Plan:
    """The join of `rows` among themselves, by the rule above."""
    everything = Recall(1.0, 1.0, len(sample.first))
    exact = Plan("faiss" if method == "faiss" else "exact", EXACT, None, 0, everything)
    if method in ("exact", "faiss") or min_recall == 1:
        return exact
    plans: list[tuple[float, Plan]] = []
    if method in ("auto", "rotation"):
        plans += _rotations(rows, sample, min_cosine, min_recall, seed)
    if method in ("auto", "cells"):
        plans += _cells(rows, sample, min_recall, seed)
    for cost, plan in plans:
        log.info("%s: %.0f dimensions a pair, recall %.4f of %d pairs", plan.method, cost, *plan.recall[::2])
    if method == "auto":
        plans = [(cost, plan) for cost, plan in plans if cost < rows.dims]
    if not plans:
        if method != "auto":
            log.warning("%s does not reach a recall of %g on the sample; the join is exact", method, min_recall)
        return exact
    return min(plans, key=lambda plan: plan[0])[1]


def _rotations(rows: Rows, sample: Sample, min_cosine: float, min_recall: float, seed: int) -> list[tuple[float, Plan]]:
    """The cheapest rotation that passes, if any, with its cost."""
    some = [rows.take(sampled_rows(len(rows), num, seed + 1 + i)) for i, num in enumerate(STRANGERS)]
    frame = random_frame(rows.dims, min(rows.dims, MAX_DIMS), seed)
    miss = 1 - min_recall
    for _ in range(TIGHTER):
        cost, screen = _cheapest(some, frame, min_cosine, miss)
        if screen is None:
            return []
        measured = _measured(rows, sample, screen)
        if measured.share >= min_recall:
            return [(cost, Plan("rotation", screen, None, 0, measured))]
        miss /= 2
    return []


def _cheapest(
    some: list[NDArray[np.float32]], frame: NDArray[np.float64], min_cosine: float, miss: float
) -> tuple[float, Screen | None]:
    best: tuple[float, Screen | None] = (np.inf, None)
    for num in NUM_DIRECTIONS:
        if num > frame.shape[1] or num >= best[0]:
            break
        score = score_for(min_cosine, frame.shape[0], num, miss)
        if score == 0:
            continue
        left, right = (encode(rows, frame[:, :num]) for rows in some)
        cost = num + VERIFY_DIMS * float((left @ right.T >= np.float32(score)).mean())
        if cost < best[0]:
            best = cost, Screen(frame[:, :num], score)
    return best


def _measured(rows: Rows, sample: Sample, screen: Screen) -> Recall:
    """Recall of a screen on the sample."""
    assert screen.frame is not None
    left, right = (encode(rows.take(index), screen.frame) for index in sample)
    return recall(np.einsum("pe,pe->p", left, right) >= np.float32(screen.score), sample.first)


def _cells(rows: Rows, sample: Sample, min_recall: float, seed: int) -> list[tuple[float, Plan]]:
    """The least number of visits that passes, if any, with its cost."""
    centroids = cells.choose_centroids(rows, seed)
    needed = cells.visits_needed(rows.take(sample.first), rows.take(sample.second), centroids)
    for num_visits, load in cells.expected_load(rows, centroids, seed).items():
        measured = recall(needed <= num_visits, sample.first)
        if measured.low >= min_recall:
            cost = rows.dims * (load + 2 * len(centroids) / len(rows))
            return [(cost, Plan("cells", EXACT, centroids, num_visits, measured))]
    return []


def load_sample(folder: Path) -> Sample:
    """The pairs of the files in a folder; of very many some."""
    pairs = merged([load_pairs(path) for path in sorted(folder.glob("*.npy"))])
    some = sampled_rows(len(pairs.first), MAX_PAIRS, seed=0)
    return Sample(pairs.first[some], pairs.second[some])


def save_plan(folder: Path, plan: Plan) -> None:
    """Write a plan; plan.json comes last."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in (("frame", plan.screen.frame), ("centroids", plan.centroids)):
        if array is not None:
            np.save(folder / f"{name}.npy", array)
    num_directions = 0 if plan.screen.frame is None else plan.screen.frame.shape[1]
    values = {
        "method": plan.method,
        "num_directions": num_directions,
        "score": plan.screen.score,
        "num_visits": plan.num_visits,
        "recall": plan.recall,
    }
    write_json(folder / "plan.json", values)


def load_plan(folder: Path) -> Plan:
    """A plan that `save_plan` wrote."""
    values: dict[str, Any] = json.loads((folder / "plan.json").read_text())
    rotated, divided = values["method"] == "rotation", values["method"] == "cells"
    frame = np.load(folder / "frame.npy") if rotated else None
    centroids = np.load(folder / "centroids.npy", mmap_mode="r") if divided else None
    return Plan(
        values["method"], Screen(frame, values["score"]), centroids, values["num_visits"], Recall(*values["recall"])
    )
