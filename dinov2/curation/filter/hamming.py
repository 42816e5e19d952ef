"""Copies among many binary hashes: exact, in memory that grows with the number of hashes and nothing else.

Images are visited in a given order; one within a few bits of an image kept before it is a copy. Done by halves: the
first is resolved, what is near a kept image of it leaves the second, then the rest of that is resolved. Two hashes that
differ in at most m bits agree entirely in b - m of any b blocks of bits, so near pairs are found by sorting on each
choice of b - m blocks; b is chosen by the number of hashes. Many alike hashes cost little, since only kept ones are
compared with, and those are never near each other. What costs is many unlike hashes that agree in most of their bits.
"""

from collections.abc import Iterator
from itertools import combinations, pairwise
from math import comb
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int64, UInt8, UInt64

DENSE_ROWS = 1024  # up to here all pairs are compared
PAIRS_AT_ONCE = 1 << 22  # 32 MB an array of them
SORT_PAIRS = 6  # building and searching a table costs as much an image as comparing so many pairs
MAX_TABLES = 1000
RANK_BITS = 40  # of a code that orders by distance, then by rank
NOTHING = np.int64(1) << 62  # code of no near image
MIX = np.uint64(0x9E3779B97F4A7C15)  # odd: equal words give equal keys, unlike ones almost never


class Near(NamedTuple):
    """Pairs within the limit: places in the order, and the bits they differ in."""

    query: Int64[np.ndarray, " p"]
    kept: Int64[np.ndarray, " p"]
    bits: Int64[np.ndarray, " p"]


def find_copies(
    hashes: UInt8[np.ndarray, "n bytes"], order: Int64[np.ndarray, " n"], *, max_hamming_bits: int
) -> Int64[np.ndarray, " n"]:
    """The index of each image's witness, if it is a copy; else -1.

    Images are visited in `order`; one within `max_hamming_bits` of an image kept before it is a copy, and its witness
    is the nearest of those, the first kept among equally near ones. So every witness is kept, and no two kept images
    are that near.
    """
    words = _words(hashes[order])
    first = np.sort(_first_of_equal(words))
    kept = _greedy(words, first, max_hamming_bits) if max_hamming_bits else first
    copies = np.setdiff1d(np.arange(len(words)), kept, assume_unique=True)
    codes = _nearest(words, copies, kept, max_hamming_bits)
    witness = np.full(len(words), -1, np.int64)
    witness[order[copies]] = order[codes & ((1 << RANK_BITS) - 1)]
    return witness


def _words(hashes: UInt8[np.ndarray, "n bytes"]) -> UInt64[np.ndarray, "n w"]:
    padding = -hashes.shape[1] % 8
    return np.ascontiguousarray(np.pad(hashes, ((0, 0), (0, padding)))).view(np.uint64)


def _first_of_equal(words: UInt64[np.ndarray, "n w"]) -> Int64[np.ndarray, " m"]:
    order = np.lexsort(words.T)  # stable: of equal ones the first comes first
    is_new = np.ones(len(words), bool)
    is_new[1:] = (words[order[1:]] != words[order[:-1]]).any(axis=1)
    return order[is_new]


def _greedy(words: UInt64[np.ndarray, "n w"], rows: Int64[np.ndarray, " m"], limit: int) -> Int64[np.ndarray, " k"]:
    """Those of `rows` (ascending) that are kept."""
    if len(rows) <= DENSE_ROWS:
        return rows[_greedy_dense(words[rows], limit)]
    half = len(rows) // 2
    kept, rest = _greedy(words, rows[:half], limit), rows[half:]
    rest = rest[_nearest(words, rest, kept, limit) == NOTHING]
    return np.concatenate([kept, _greedy(words, rest, limit)])


def _greedy_dense(words: UInt64[np.ndarray, "n w"], limit: int) -> Bool[np.ndarray, " n"]:
    near = sum(np.bitwise_count(word[:, None] ^ word[None]).astype(np.int64) for word in words.T) <= limit
    near = np.tril(near, -1)
    kept = np.ones(len(words), bool)
    for row in np.flatnonzero(near.any(axis=1)):
        kept[row] = not kept[near[row]].any()
    return kept


def _nearest(
    words: UInt64[np.ndarray, "n w"], queries: Int64[np.ndarray, " q"], kept: Int64[np.ndarray, " k"], limit: int
) -> Int64[np.ndarray, " q"]:
    """Code (bits, then rank) of the nearest kept image before each query; NOTHING where none is near."""
    codes = np.full(len(queries), NOTHING, np.int64)
    for near in _near_pairs(words, queries, kept, limit):
        before = kept[near.kept] < queries[near.query]
        code = near.bits[before] << RANK_BITS | kept[near.kept[before]]
        np.minimum.at(codes, near.query[before], code)
    return codes


def _near_pairs(
    words: UInt64[np.ndarray, "n w"], queries: Int64[np.ndarray, " q"], kept: Int64[np.ndarray, " k"], limit: int
) -> Iterator[Near]:
    """All pairs within `limit`, some of them more than once."""
    if not len(queries) or not len(kept):
        return
    asked, stored = words[queries], words[kept]
    for mask in _masks(words.shape[1], limit, len(kept)):
        asked_keys, stored_keys = _keys(asked, mask), _keys(stored, mask)
        by_key, ask_order = np.argsort(stored_keys), np.argsort(asked_keys)
        stored_keys, asked_keys = stored_keys[by_key], asked_keys[ask_order]  # both sorted: the search is in the cache
        start = np.searchsorted(stored_keys, asked_keys, "left")
        counts = np.searchsorted(stored_keys, asked_keys, "right") - start
        turn = (np.cumsum(counts) - counts) // PAIRS_AT_ONCE
        for low, high in pairwise([0, *(np.flatnonzero(np.diff(turn)) + 1), len(counts)]):
            part = counts[low:high]
            within = np.arange(part.sum()) - np.repeat(np.cumsum(part) - part, part)
            query = np.repeat(ask_order[low:high], part)
            other = by_key[np.repeat(start[low:high], part) + within]
            bits = np.bitwise_count(asked[query] ^ stored[other]).sum(axis=1, dtype=np.int64)
            near = bits <= limit
            yield Near(query[near], other[near], bits[near])


def _masks(num_words: int, limit: int, num_kept: int) -> list[UInt64[np.ndarray, " w"]]:
    """The bits that each table is sorted by: every choice of all but `limit` of some blocks, at the least cost."""
    num_bits = 64 * num_words  # short hashes have zeros at their end, which only makes the estimate worse

    def cost(blocks: int) -> float:
        return comb(blocks, limit) * (SORT_PAIRS + num_kept / 2.0 ** (num_bits * (blocks - limit) / blocks))

    choices = [blocks for blocks in range(limit + 1, limit + 12) if comb(blocks, limit) <= MAX_TABLES]
    blocks = min(choices, key=cost)
    block_of = np.arange(num_bits) % blocks  # interleaved: first components tell more than last ones
    chosen = combinations(range(blocks), blocks - limit)
    return [np.packbits(np.isin(block_of, blocks_in)).view(np.uint64) for blocks_in in chosen]


def _keys(words: UInt64[np.ndarray, "n w"], mask: UInt64[np.ndarray, " w"]) -> UInt64[np.ndarray, " n"]:
    keys = np.zeros(len(words), np.uint64)
    for word, bits in zip(words.T, mask, strict=True):
        keys = (keys ^ (word & bits)) * MIX
    return keys
