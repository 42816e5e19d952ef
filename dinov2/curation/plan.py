"""Which join a set of rows gets: decided on a sample that was joined exactly, by counts and never by a clock.

Costs are counted in dimensions: multiplications a pair of rows. `exact` costs d. `rotation` costs the e dimensions of
its codes and VERIFY_DIMS for every pair that passes; e is the cheapest of a few. `cells` compares rows only with those
of the cells that they visit, all d dimensions.

The rule. A method is used if its recall on one half of the sampled rows is at least `min_recall`, and, for `cells`, of
which nothing is known beforehand, its lower bound is too (the other half chose how many cells are visited). A rotation
that falls short is tightened: half as many pairs at the threshold may be missed. `auto` takes the cheapest method that
passes; one named by params that can't pass gives way to `exact`, and says so.
"""

import json
import logging
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Int
from numpy.typing import NDArray

from dinov2.curation import cells
from dinov2.curation.join import EXACT, VERIFY_DIMS, Screen, merged
from dinov2.curation.pairs import load_pairs
from dinov2.curation.recall import Recall, recall, sampled_rows
from dinov2.curation.rotation import MAX_DIMS, encode, random_frame, score_for
from dinov2.curation.rows import Rows
from dinov2.records import write_json

log = logging.getLogger(__name__)

Method = Literal["exact", "rotation", "cells", "faiss"]
NUM_DIRECTIONS = (32, 48, 64, 80, 96, 112, 128, 160, 192, 256, 320, 384, 512, 768, 1024)
STRANGERS = (512, 8192)  # rows whose products tell how many strangers pass a screen
TIGHTER = 6  # times that a rotation is tightened
CALIBRATION_PAIRS = 20000


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
    if method in ("exact", "faiss"):
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
    """Recall of a screen on the pairs of the sampled rows in odd places."""
    assert screen.frame is not None
    half = half_of(sample, 1)
    passed = np.zeros(len(half.first), bool)
    for start in range(0, len(passed), CALIBRATION_PAIRS):
        part = slice(start, start + CALIBRATION_PAIRS)
        left, right = (encode(rows.take(index[part]), screen.frame) for index in half)
        passed[part] = np.einsum("pe,pe->p", left, right) >= np.float32(screen.score)
    return recall(passed, half.first)


def _cells(rows: Rows, sample: Sample, min_recall: float, seed: int) -> list[tuple[float, Plan]]:
    """The least number of visits that passes, if any, with its cost."""
    centroids = cells.choose_centroids(rows, seed)
    places = [_places(rows, half, centroids) for half in (half_of(sample, 0), half_of(sample, 1))]
    load = cells.expected_load(rows, centroids, seed)
    for num_visits in cells.NUM_VISITS:
        if num_visits > len(centroids):
            break
        calibrated, measured = (recall(place < num_visits, half) for half, place in places)
        if calibrated.low >= min_recall:
            if min(measured.low, measured.share) < min_recall:
                return []
            cost = rows.dims * (load[num_visits] + 2 * len(centroids) / len(rows))
            return [(cost, Plan("cells", EXACT, centroids, num_visits, measured))]
    return []


def _places(rows: Rows, half: Sample, centroids: NDArray[np.float32]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """For some pairs of `half` their sampled row, and how many visits find them less one."""
    chosen = sampled_rows(len(half.first), CALIBRATION_PAIRS, 0)
    first, second = half.first[chosen], half.second[chosen]
    return first, cells.visits_needed(rows.take(first), rows.take(second), centroids) - 1


def half_of(sample: Sample, which: int) -> Sample:
    """The pairs of every other sampled row."""
    mine = np.unique(sample.first, return_inverse=True)[1] % 2 == which
    return Sample(sample.first[mine], sample.second[mine])


def load_sample(folder: Path) -> Sample:
    """All pairs of the files in a folder."""
    pairs = merged([load_pairs(path) for path in sorted(folder.glob("*.npy"))])
    return Sample(pairs.first, pairs.second)


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
    centroids = np.load(folder / "centroids.npy") if divided else None
    return Plan(
        values["method"], Screen(frame, values["score"]), centroids, values["num_visits"], Recall(*values["recall"])
    )
