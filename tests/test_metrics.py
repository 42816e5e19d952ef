"""Votes, accuracy, intervals and effective rank against values worked out by hand or in closed form."""

import math

import numpy as np
import pytest
import torch

from dinov2.metrics import accuracy, bootstrap_interval, effective_rank, knn_classify, top_hits


def test_knn_nearest_neighbour_outvotes_two_distant_ones() -> None:
    cosine = torch.tensor([[0.9, 0.2, 0.2]])
    labels = torch.tensor([[1, 0, 0]])
    scores = knn_classify(cosine, labels, num_neighbors=[1, 3], num_classes=3, temperature=0.07)
    assert scores[3].argmax().item() == 1
    weight = 2 * math.exp(0.2 / 0.07) / (2 * math.exp(0.2 / 0.07) + math.exp(0.9 / 0.07))
    assert scores[3][0, 0].item() == pytest.approx(weight, rel=1e-5)
    assert scores[1][0].isinf().tolist() == [True, False, True]


def test_knn_high_temperature_is_a_majority_vote() -> None:
    cosine = torch.tensor([[0.9, 0.2, 0.2]])
    labels = torch.tensor([[1, 0, 0]])
    assert knn_classify(cosine, labels, num_neighbors=[3], num_classes=2, temperature=100.0)[3].argmax().item() == 0


def test_top_hits_class_without_vote_is_no_hit() -> None:
    scores = torch.tensor([[0.7, 0.3, -torch.inf], [0.7, 0.3, -torch.inf]])
    labels = torch.tensor([1, 2])
    assert top_hits(scores, labels, 5).tolist() == [True, False]
    assert accuracy(scores, labels, 1) == 0.0
    assert accuracy(scores, labels, 2) == 0.5


def test_bootstrap_interval_matches_the_binomial() -> None:
    hits = np.repeat([0.0, 1.0], [40, 60])
    low, high = bootstrap_interval(hits, num_resamples=20000, seed=0)
    half = 1.96 * math.sqrt(0.6 * 0.4 / 100)
    assert low == pytest.approx(0.6 - half, abs=0.012)
    assert high == pytest.approx(0.6 + half, abs=0.012)
    assert bootstrap_interval(hits, num_resamples=20000, seed=0) == (low, high)


def test_bootstrap_interval_of_paired_differences_is_narrower_than_unpaired() -> None:
    first = np.repeat([1.0, 0.0], [70, 30])
    second = np.repeat([1.0, 0.0], [60, 40])  # right wherever the first is, but for ten images
    low, high = bootstrap_interval(first - second, num_resamples=2000, seed=0)
    assert 0 < low < 0.1 < high < 0.2


def test_effective_rank_of_isotropic_and_of_collapsed_features() -> None:
    isotropic = torch.cat([torch.eye(8), -torch.eye(8)])
    assert effective_rank(isotropic) == pytest.approx(8.0, rel=1e-5)
    line = torch.linspace(-1, 1, 20)[:, None] * torch.ones(1, 8) + 100.0
    assert effective_rank(line) == pytest.approx(1.0, abs=1e-3)
    assert effective_rank(torch.ones(10, 4)) == 1.0
