"""Recall and its bound."""

import numpy as np
import pytest

from dinov2.curation.dedup.recall import recall, sampled_rows


def test_bound_of_independent_pairs_is_that_of_the_binomial() -> None:
    everything = recall(np.ones(300, bool), np.arange(300))
    assert (everything.share, everything.num_pairs) == (1, 300)
    assert everything.low == pytest.approx(0.05 ** (1 / 300))
    found = np.arange(200) >= 4
    some = recall(found, np.arange(200))
    assert some.share == pytest.approx(0.98)
    draws = np.random.default_rng(0).binomial(200, some.low, 200_000) / 200
    assert (draws >= some.share).mean() == pytest.approx(0.05, abs=0.003)


def test_pairs_of_one_row_count_as_one() -> None:
    many = recall(np.ones(1000, bool), np.repeat(np.arange(10), 100))
    few = recall(np.ones(10, bool), np.arange(10))
    assert many.low == pytest.approx(few.low)


def test_nothing_sampled_promises_nothing() -> None:
    assert recall(np.empty(0, bool), np.empty(0, np.int64)) == (1, 0, 0)
    assert recall(np.zeros(5, bool), np.arange(5)).low == 0


def test_sampled_rows_are_distinct_and_in_order() -> None:
    rows = sampled_rows(1000, 100, 3)
    assert (np.diff(rows) > 0).all() and len(rows) == 100
    np.testing.assert_array_equal(sampled_rows(20, 100, 3), np.arange(20))
