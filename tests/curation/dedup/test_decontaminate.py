"""Copies of evaluation images: the nearest of each set is found, however many are near, in little memory."""

import tracemalloc

import numpy as np
import pytest
from numpy.typing import NDArray

from dinov2.curation.dedup import decontaminate
from dinov2.curation.dedup.decontaminate import contacts_of
from dinov2.curation.dedup.products import NumpyEngine
from dinov2.curation.descriptors import Rows
from dinov2.params import InputError

SETS = np.array([0, 2, 1, 0, 1, 2, 0])
THRESHOLDS = np.array([0.5, 0.9, 0.2])


def units(num: int, seed: int, dims: int = 4) -> NDArray[np.float32]:
    rows = np.random.default_rng(seed).standard_normal((num, dims))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize("at_once", [1, 3, 100])
@pytest.mark.parametrize("few", [1, 2**18])
def test_contacts_are_the_nearest_of_each_set(at_once: int, few: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decontaminate, "FEW", few)
    block, others = units(60, 0), units(7, 1)
    others[6] = others[0]  # of the same set: the first is named
    found = contacts_of(block, Rows([others]), THRESHOLDS[SETS], SETS, NumpyEngine(), at_once=at_once)
    expected = []
    cosines = block.astype(np.float64) @ others.T.astype(np.float64)
    for row in range(60):
        nearest = [max(np.flatnonzero(home == SETS), key=lambda image: cosines[row, image]) for home in range(3)]
        expected += [(row, image) for image in sorted(nearest) if cosines[row, image] >= THRESHOLDS[SETS[image]]]
    assert list(zip(found.first.tolist(), found.second.tolist(), strict=True)) == expected
    np.testing.assert_allclose(found.cosine, [cosines[pair] for pair in expected], atol=1e-6)
    assert len({int(SETS[image]) for _, image in expected}) == 3


def peak_bytes(num_equal: int) -> int:
    block, others = np.repeat(units(1, 0), 500, axis=0), np.repeat(units(1, 0), num_equal, axis=0)
    thresholds, sets = np.full(num_equal, 0.9), np.zeros(num_equal, np.int64)
    tracemalloc.start()
    found = contacts_of(block, Rows([others]), thresholds, sets, NumpyEngine(), at_once=10**6)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found.first.tolist() == list(range(500))
    assert (found.second == 0).all()
    return peak


def test_many_equal_images_take_the_memory_of_a_tile() -> None:
    assert peak_bytes(40_000) - peak_bytes(10_000) < 4 * 500 * 30_000  # the pairs themselves: 20 bytes each


def test_no_evaluation_image_gives_no_contact() -> None:
    found = contacts_of(units(5, 0), Rows([]), np.empty(0), np.empty(0, np.int64), NumpyEngine(), at_once=3)
    assert len(found.first) == 0


def test_an_evaluation_image_without_a_descriptor_is_a_mistake() -> None:
    others = units(7, 1)
    others[4] = np.nan
    with pytest.raises(InputError, match="evaluation image 4 is NaN"):
        contacts_of(units(5, 0), Rows([others]), THRESHOLDS[SETS], SETS, NumpyEngine(), at_once=3)
