"""Which sample is the n-th of the run: computed, so that any step can be reached at once.

The order costs no memory and no start-up, whatever the number of images, and depends on (seed, position) alone: not on
workers, processes or restarts.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

NUM_ROUNDS = 6
MASK_64 = 2**64 - 1


def sample_index(seed: int, position: int, length: int) -> int:
    """The sample at `position` (from 0) of an endless sequence that visits all `length` samples in every pass."""
    number, place = divmod(position, length)
    return permute(place, length, _mix(_mix(seed) ^ number))


def permute(place: int, length: int, key: int) -> int:
    """Where a keyed permutation of range(length) sends `place`.

    A Feistel network permutes the next larger square of a power of two; what falls outside the range is sent on until
    it falls inside, which keeps it a permutation (cycle walking) and takes less than four tries on average.
    """
    half_bits = max(1, ((length - 1).bit_length() + 1) // 2)
    half_mask = (1 << half_bits) - 1
    while True:
        left, right = place >> half_bits, place & half_mask
        for number in range(NUM_ROUNDS):
            left, right = right, left ^ (_mix(right ^ (key + number * 0x9E3779B97F4A7C15)) & half_mask)
        place = left << half_bits | right
        if place < length:
            return place


def _mix(value: int) -> int:
    """A 64-bit number that looks unrelated to `value` (the finaliser of SplitMix64)."""
    value = (value + 0x9E3779B97F4A7C15) & MASK_64
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & MASK_64
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & MASK_64
    return value ^ (value >> 31)


def shares(weights: Sequence[float], total: int) -> list[int]:
    """`total` divided in proportion to `weights`, by largest remainders (of equal ones the first)."""
    exact = [weight * total / sum(weights) for weight in weights]
    counts = [int(part) for part in exact]
    by_remainder = sorted(range(len(weights)), key=lambda number: counts[number] - exact[number])
    for number in by_remainder[: total - sum(counts)]:
        counts[number] += 1
    return counts


def interleave(counts: Sequence[int]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Kinds, of which there are `counts`, spread evenly over a cycle: (kind, how many of its kind came before).

    Any stretch of the cycle holds each kind as often as its share of the stretch, to within a few.
    """
    kinds = np.repeat(np.arange(len(counts)), counts)
    before = np.concatenate([np.arange(count) for count in counts])
    wanted = (before + 0.5) / np.repeat(counts, counts)  # where in the cycle, from 0 to 1
    by_place = np.argsort(wanted, kind="stable")
    return kinds[by_place], before[by_place]
