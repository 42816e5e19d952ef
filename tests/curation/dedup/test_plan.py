"""Which join is chosen, and that what is promised on the sample is what the join finds."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from dinov2.curation.dedup.join import EXACT, Pairs, Screen, pairs_above
from dinov2.curation.dedup.plan import Method, Sample, choose_plan, load_plan, save_plan
from dinov2.curation.dedup.products import NumpyEngine
from dinov2.curation.dedup.recall import sampled_rows
from dinov2.curation.dedup.rotation import encode
from dinov2.curation.descriptors import Rows

NUM, DIMS, MIN_COSINE = 3000, 128, 0.6


@pytest.fixture(scope="module")
def rows() -> Rows:
    """A third are near others, with cosines of 0.5 to 1."""
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((NUM, DIMS))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    cosine = rng.uniform(0.5, 1, (1000, 1))
    vectors[:1000] = cosine * vectors[1000:2000] + np.sqrt((1 - cosine**2) / DIMS) * rng.standard_normal((1000, DIMS))
    return Rows([vectors / np.linalg.norm(vectors, axis=1, keepdims=True)])


@pytest.fixture(scope="module")
def truth(rows: Rows) -> Pairs:
    return pairs_above(rows.read(0, NUM), None, MIN_COSINE, EXACT, NumpyEngine())


@pytest.fixture(scope="module")
def sample(truth: Pairs) -> Sample:
    """What comparing 1,500 rows with all gives."""
    first, second = np.concatenate([truth.first, truth.second]), np.concatenate([truth.second, truth.first])
    chosen = np.isin(first, sampled_rows(NUM, 1500, 0))
    return Sample(first[chosen], second[chosen])


def test_rotation_finds_what_it_promises(rows: Rows, sample: Sample, truth: Pairs) -> None:
    plan = choose_plan(rows, sample, method="rotation", min_cosine=MIN_COSINE, min_recall=0.95, seed=0)
    assert plan.method == "rotation" and plan.screen.frame is not None
    assert plan.screen.frame.shape[1] < DIMS
    found = pairs_above(rows.read(0, NUM), None, MIN_COSINE, plan.screen, NumpyEngine())
    assert 0.95 <= len(found.first) / len(truth.first) <= 1
    keys = set(zip(found.first.tolist(), found.second.tolist(), strict=True))
    ends = zip(sample.first.tolist(), sample.second.tolist(), strict=True)
    assert np.mean([(min(pair), max(pair)) in keys for pair in ends]) == pytest.approx(plan.recall.share)
    assert plan.recall.num_pairs == len(sample.first) > 100


def test_a_rotation_that_falls_short_is_tightened(rows: Rows, sample: Sample) -> None:
    cosine = np.einsum("pd,pd->p", *(rows.take(index) for index in sample))
    loose = choose_plan(rows, sample, method="rotation", min_cosine=MIN_COSINE, min_recall=0.9, seed=0)
    passing = _score(rows, sample, loose.screen)
    missed = np.flatnonzero((passing < loose.screen.score) & (cosine < 0.7))
    near = np.sort(np.concatenate([missed, np.flatnonzero(passing >= loose.screen.score)[: 3 * len(missed)]]))
    hard = Sample(*(index[near] for index in sample))  # a quarter of these pairs are missed by it
    tight = choose_plan(rows, hard, method="rotation", min_cosine=MIN_COSINE, min_recall=0.9, seed=0)
    assert tight.method == "rotation" and tight.recall.share >= 0.9
    assert tight.screen.score != loose.screen.score


def _score(rows: Rows, sample: Sample, screen: Screen) -> NDArray[np.float32]:
    assert screen.frame is not None
    left, right = (encode(rows.take(index), screen.frame) for index in sample)
    return (left * right).sum(axis=1)


def test_auto_takes_the_exact_join_where_codes_would_be_as_long(rows: Rows, sample: Sample) -> None:
    none = Sample(sample.first[:0], sample.second[:0])
    plan = choose_plan(rows, none, method="auto", min_cosine=0.05, min_recall=0.99, seed=0)
    assert (plan.method, plan.recall.share) == ("exact", 1)


def test_cells_that_are_not_sure_are_not_used(rows: Rows, sample: Sample) -> None:
    few = Sample(sample.first[:40], sample.second[:40])
    plan = choose_plan(rows, few, method="cells", min_cosine=MIN_COSINE, min_recall=0.99, seed=0)
    assert plan.method == "exact"


@pytest.mark.parametrize("method", ["exact", "rotation", "cells"])
def test_plans_are_read_as_written(tmp_path: Path, rows: Rows, sample: Sample, method: Method) -> None:
    plan = choose_plan(rows, sample, method=method, min_cosine=MIN_COSINE, min_recall=0.5, seed=0)
    assert plan.method == method
    save_plan(tmp_path, plan)
    read = load_plan(tmp_path)
    assert (read.method, read.screen.score, read.num_visits, read.recall) == (
        plan.method, plan.screen.score, plan.num_visits, plan.recall
    )  # fmt: skip
    for one, same in ((plan.screen.frame, read.screen.frame), (plan.centroids, read.centroids)):
        np.testing.assert_array_equal(one, same)


def test_a_recall_of_one_takes_the_exact_join(rows: Rows, sample: Sample) -> None:
    assert choose_plan(rows, sample, method="auto", min_cosine=MIN_COSINE, min_recall=1.0, seed=0).method == "exact"
