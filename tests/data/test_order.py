"""The endless order and how kinds are spread over a cycle."""

from collections import Counter

import pytest

from dinov2.data.order import interleave, permute, sample_index, shares


@pytest.mark.parametrize("length", [1, 2, 3, 7, 64, 65, 1000])
def test_permute_is_a_permutation(length: int) -> None:
    assert sorted(permute(place, length, 42) for place in range(length)) == list(range(length))


def test_permute_of_many_reaches_far() -> None:
    assert 0 <= permute(123_456_789_012, 10**12, 7) < 10**12


def test_permute_mixes_well() -> None:
    firsts = Counter(permute(0, 10, key) for key in range(5000))
    assert min(firsts.values()) > 400
    steps = Counter((permute(place + 1, 1000, 9) - permute(place, 1000, 9)) % 1000 for place in range(999))
    assert max(steps.values()) < 12


def test_sample_index_visits_all_in_every_pass_in_another_order() -> None:
    passes = [[sample_index(5, number * 50 + place, 50) for place in range(50)] for number in range(3)]
    assert all(sorted(order) == list(range(50)) for order in passes)
    assert passes[0] != passes[1] != passes[2]
    assert passes[0] != [sample_index(6, place, 50) for place in range(50)]


def test_shares_are_largest_remainders() -> None:
    assert shares([1.0, 1.0, 1.0], 100) == [34, 33, 33]
    assert shares([0.7, 0.2, 0.1], 10) == [7, 2, 1]
    assert shares([2.0, 1e-9], 100) == [100, 0]


def test_interleave_spreads_kinds_evenly() -> None:
    kinds, before = interleave([50, 30, 20])
    for kind, count in enumerate([50, 30, 20]):
        places = (kinds == kind).nonzero()[0]
        assert before[places].tolist() == list(range(count))
        for start in range(0, 100, 10):
            assert abs((kinds[start : start + 10] == kind).sum() - count / 10) <= 1
