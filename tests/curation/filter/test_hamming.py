"""Copies by Hamming distance: the search equals brute force, however it is cut, and takes many alike hashes."""

import numpy as np
import pytest
from numpy.typing import NDArray

from dinov2.curation.filter import hamming
from dinov2.curation.filter.hamming import find_copies


def distance(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> int:
    return int(np.unpackbits(a ^ b).sum())


def brute_force(hashes: NDArray[np.uint8], order: NDArray[np.int64], limit: int) -> list[int]:
    kept: list[int] = []
    witness = [-1] * len(hashes)
    for index in map(int, order):
        near = [(distance(hashes[index], hashes[other]), place) for place, other in enumerate(kept)]
        if near and min(near)[0] <= limit:
            witness[index] = kept[min(near)[1]]
        else:
            kept.append(index)
    return witness


def groups(num_bits: int, count: int, flipped: float) -> NDArray[np.uint8]:
    """Hashes in groups: each a centre of a third as many, with some bits flipped."""
    generator = np.random.default_rng(num_bits)
    bits = generator.integers(0, 2, (count // 3, num_bits))
    bits = bits[generator.integers(0, count // 3, count)] ^ (generator.random((count, num_bits)) < flipped)
    return np.packbits(bits.astype(np.uint8), axis=1)


@pytest.mark.parametrize("num_bits", [16, 61, 64, 100, 256])
@pytest.mark.parametrize(("dense_rows", "pairs"), [(1024, 1 << 22), (4, 50)])
def test_find_copies_equals_brute_force(
    num_bits: int, dense_rows: int, pairs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hamming, "DENSE_ROWS", dense_rows)
    monkeypatch.setattr(hamming, "PAIRS_AT_ONCE", pairs)
    hashes = groups(num_bits, 150, 2.5 / num_bits)
    order = np.random.default_rng(1).permutation(150)
    for limit in (0, 1, 4, num_bits // 16 + 1):
        copies = find_copies(hashes, order, max_hamming_bits=limit)
        assert copies.tolist() == brute_force(hashes, order, limit)
    assert 10 < (copies >= 0).sum() < 150


def test_witness_is_the_nearest_and_of_equally_near_ones_the_first() -> None:
    hashes = np.array([[0b0000_0000], [0b0000_0111], [0b0000_0001], [0b0000_0011]], np.uint8).repeat(2, axis=1)
    hashes[:, 1] = 0
    assert find_copies(hashes, np.arange(4), max_hamming_bits=2).tolist() == [-1, -1, 0, 1]
    assert find_copies(hashes, np.array([1, 0, 2, 3]), max_hamming_bits=1).tolist() == [-1, -1, 0, 1]


@pytest.mark.parametrize("count", [0, 1, 2])
def test_few_hashes(count: int) -> None:
    copies = find_copies(np.zeros((count, 8), np.uint8), np.arange(count), max_hamming_bits=3)
    assert copies.tolist() == [-1, 0][:count]


def test_one_hash_many_times_and_in_many_variants_is_one_image() -> None:
    """What a popular picture gives: all pairs of these are near each other, four thousand millions of them."""
    generator = np.random.default_rng(0)
    bits = np.zeros((90_000, 64), np.uint8)
    bits[30_000:][np.arange(60_000)[:, None], generator.integers(0, 64, (60_000, 3))] = 1
    copies = find_copies(np.packbits(bits, axis=1), np.arange(90_000), max_hamming_bits=6)
    assert copies[0] == -1
    assert (copies[1:] == 0).all()
