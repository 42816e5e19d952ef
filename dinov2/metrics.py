"""Numbers that say how good features are: weighted k-NN votes, top-k accuracy, its interval, effective rank.

Pure functions of tensors and arrays, shared by the live monitors of training, the evaluation and the report. Neighbours
come from `dinov2.search.top_k`; this file only counts their votes.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def knn_classify(
    cosine: Float[Tensor, "m k"],
    neighbor_labels: Int[Tensor, "m k"],
    *,
    num_neighbors: Sequence[int],
    num_classes: int,
    temperature: float,
) -> dict[int, Float[Tensor, "m c"]]:
    """Class scores of m images by the weighted votes of their neighbours, for every number of neighbours asked for.

    `cosine` holds similarities, best first, and `neighbor_labels` the class numbers of those neighbours. A vote weighs
    softmax(cosine / temperature), taken over all k columns, as in the reference; the first `num_neighbors` of them
    count. A class without any vote scores -inf: it was not predicted. Paper section 7.1 (k-NN).
    """
    assert max(num_neighbors) <= cosine.shape[1], (num_neighbors, cosine.shape)
    weights = torch.softmax(cosine.double() / temperature, dim=1)
    scores = {}
    for num in num_neighbors:
        votes = torch.zeros(len(cosine), num_classes, dtype=torch.float64)
        voted = torch.zeros(len(cosine), num_classes, dtype=torch.bool)
        for column in range(num):  # one neighbour at a time: a fixed order of summation
            votes[torch.arange(len(cosine)), neighbor_labels[:, column].long()] += weights[:, column]
        voted.scatter_(1, neighbor_labels[:, :num].long(), value=True)
        scores[num] = votes.masked_fill(~voted, -torch.inf).float()
    return scores


def top_hits(scores: Float[Tensor, "m c"], labels: Int[Tensor, " m"], top: int) -> Bool[Tensor, " m"]:
    """Whether the true class is among the `top` best scores; equal scores are ranked by class number.

    A class that scores -inf is no hit, however few classes there are.
    """
    order = torch.argsort(scores, dim=1, descending=True, stable=True)[:, :top]
    predicted = torch.isfinite(scores.gather(1, labels.long()[:, None]))[:, 0]
    return (order == labels[:, None]).any(dim=1) & predicted


def accuracy(scores: Float[Tensor, "m c"], labels: Int[Tensor, " m"], top: int) -> float:
    """Share of the m images whose true class is among the `top` best scores (micro average)."""
    return float(top_hits(scores, labels, top).double().mean())


def bootstrap_interval(values: npt.ArrayLike, *, num_resamples: int, seed: int) -> tuple[float, float]:
    """95 % percentile interval of the mean of `values`, one an image, resampling images with replacement.

    For two models on the same images give the differences of their hits: then the interval is a paired one. Values are
    drawn by how often each occurs, which is the same distribution at the cost of a few numbers a resample.
    """
    array = np.asarray(values, dtype=np.float64)
    assert array.ndim == 1, array.shape
    assert len(array) > 0
    distinct, counts = np.unique(array, return_counts=True)
    draws = np.random.Generator(np.random.PCG64(seed)).multinomial(len(array), counts / len(array), size=num_resamples)
    low, high = np.quantile(draws @ distinct / len(array), [0.025, 0.975])
    return float(low), float(high)


def effective_rank(features: Float[Tensor, "n d"]) -> float:
    """Number of directions that features use: exp of the entropy of their normalised singular values (RankMe).

    Between 1 (collapsed on a line) and min(n - 1, d). Features are centred first: an offset that all images share
    tells none of them apart. Features that are all equal have rank 1.
    """
    centred = features.double() - features.double().mean(dim=0)
    singular = torch.linalg.svdvals(centred)
    scale = features.double().norm() * torch.finfo(features.dtype).eps
    singular = singular[singular > scale]  # less than rounding is nothing
    if len(singular) == 0:
        return 1.0
    share = singular / singular.sum()
    return float(torch.exp(-(share * share.log()).sum()))
