"""How many of the true pairs a join finds, measured on sampled rows that were compared with all others exactly."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int
from scipy.special import betaincinv

CONFIDENCE = 0.95


class Recall(NamedTuple):
    """Share of the sample's true pairs that are found."""

    share: float
    """1 where the sample holds no pair."""
    low: float
    """One-sided 95 % bound from below; 0 where the sample holds no pair."""
    num_pairs: int


def sampled_rows(num_rows: int, num_sampled: int, seed: int) -> Int[np.ndarray, " s"]:
    """Row numbers, in order."""
    rng = np.random.Generator(np.random.PCG64(seed))
    return np.sort(rng.choice(num_rows, min(num_sampled, num_rows), replace=False))


def recall(found: Bool[np.ndarray, " p"], row: Int[np.ndarray, " p"]) -> Recall:
    """Recall over the true pairs of sampled rows; `row` is the sampled row that brought each pair.

    Pairs of one row succeed and fail together. The bound is Clopper and Pearson's for the number of independent pairs
    that are worth as much: (sum of counts)^2 / sum of squared counts, over rows.
    """
    if len(found) == 0:
        return Recall(1.0, 0.0, 0)
    counts = np.unique(row, return_counts=True)[1].astype(np.float64)
    share = float(found.mean())
    worth = counts.sum() ** 2 / (counts**2).sum()
    hits = share * worth
    low = float(betaincinv(hits, worth - hits + 1, 1 - CONFIDENCE)) if hits > 0 else 0.0
    return Recall(share, low, len(found))
