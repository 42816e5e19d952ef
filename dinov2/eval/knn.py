"""k-NN on frozen features: the judge that trains nothing (paper section 7.1; temperature 0.07, weighted votes)."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dinov2.eval.params import KnnParams
from dinov2.metrics import knn_classify
from dinov2.search import top_k


def limited(num_neighbors: int, num_train: int) -> int:
    """A number of neighbours, no larger than the number of training images."""
    return min(num_neighbors, num_train)


def knn_scores(
    train: Float[Tensor, "n d"],
    train_labels: Int[Tensor, " n"],
    test: Float[Tensor, "m d"],
    *,
    num_classes: int,
    params: KnnParams,
) -> dict[int, Float[Tensor, "m c"]]:
    """Class scores of the test images for each of `params.num_neighbors` (at most n); features of any length."""
    asked = sorted({limited(num, len(train)) for num in params.num_neighbors})
    cosine, index = top_k(unit_length(test), unit_length(train), max(asked))
    return knn_classify(
        torch.as_tensor(cosine),
        train_labels[torch.as_tensor(index)],
        num_neighbors=asked,
        num_classes=num_classes,
        temperature=params.temperature,
    )


def unit_length(features: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    """Rows divided by their norm; a row of zeros stays one."""
    return torch.nn.functional.normalize(features.float(), dim=1)
