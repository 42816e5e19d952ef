"""Exact search by cosine: the k nearest keys of every query, and all pairs of vectors above a threshold.

Matrix products of blocks, so that memory is bounded by the block and not by the number of vectors. NumPy arrays stay in
NumPy (this module imports no torch, which the stages that only search are glad of); torch tensors stay on their device.
Vectors are of unit length; float16 ones are multiplied as float32.
"""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import NDArray

QUERY_ROWS = 512
KEY_ROWS = 16384
JOIN_ROWS = 4096
VERIFY_ROWS = 65536
MARGIN = 1e-4  # above the rounding of a float32 product of two unit vectors; what lies within it is computed again
SPARE = 8  # candidates beyond k, among which float64 decides
GATHERED = 2**24  # numbers gathered at once for that


class Pairs(NamedTuple):
    """Pairs of rows, ordered by first, then second."""

    first: Int[np.ndarray, " p"]
    second: Int[np.ndarray, " p"]
    cosine: Float[np.ndarray, " p"]
    """float32, rounded from a sum in float64 that no block size and no order of additions touches."""


def top_k(
    queries: Float[Any, "q d"], keys: Float[Any, "n d"], k: int
) -> tuple[Float[Any, "q k"], Int[Any, "q k"]]:
    """Cosines (float32, best first) and row numbers (int64) of the k nearest keys of every query; of equals the first.

    NumPy arrays give arrays, torch tensors give tensors on the same device. Candidates come from float32 products,
    their cosines and order from sums in float64, so that equal keys are equal wherever they stand in a block.
    """
    assert 0 < k <= len(keys), (k, len(keys))
    rows = max(1, min(QUERY_ROWS, GATHERED // ((k + SPARE) * keys.shape[1])))
    starts = range(0, max(1, len(queries)), rows)
    pieces = [_top_k_rows(queries[start : start + rows], keys, k) for start in starts]
    cosine, index = zip(*pieces, strict=True)
    if isinstance(keys, np.ndarray):
        return np.concatenate(cosine), np.concatenate(index)
    import torch

    return torch.cat(cosine), torch.cat(index)


def _top_k_rows(queries: Any, keys: Any, k: int) -> tuple[Any, Any]:
    """`top_k` of one block of queries."""
    num = min(k + SPARE, len(keys))
    return (_top_k_numpy if isinstance(keys, np.ndarray) else _top_k_torch)(queries, keys, k, num)


def _top_k_numpy(queries: Any, keys: Any, k: int, num: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    best, index = np.empty((len(queries), 0), np.float32), np.empty((len(queries), 0), np.int64)
    left = _float32(queries)
    for start in range(0, len(keys), KEY_ROWS):
        cosine = left @ _float32(keys[start : start + KEY_ROWS]).T
        columns = np.argpartition(cosine, -min(num, cosine.shape[1]), axis=1)[:, -min(num, cosine.shape[1]) :]
        best = np.concatenate([best, np.take_along_axis(cosine, columns, axis=1)], axis=1)
        index = np.concatenate([index, columns + start], axis=1)
        if best.shape[1] > num:
            columns = np.argpartition(best, -num, axis=1)[:, -num:]
            best, index = np.take_along_axis(best, columns, axis=1), np.take_along_axis(index, columns, axis=1)
    index = np.sort(index, axis=1)
    exact = (queries[:, None].astype(np.float64) * keys[index]).sum(axis=2).astype(np.float32)
    order = np.argsort(-exact, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(exact, order, axis=1), np.take_along_axis(index, order, axis=1)


def _top_k_torch(queries: Any, keys: Any, k: int, num: int) -> tuple[Any, Any]:
    import torch

    best, index = [], []
    for start in range(0, len(keys), KEY_ROWS):
        cosine = queries.float() @ keys[start : start + KEY_ROWS].float().T
        values, columns = cosine.topk(min(num, cosine.shape[1]), dim=1)
        best.append(values)
        index.append(columns + start)
    joined, columns = torch.cat(index, dim=1), torch.cat(best, dim=1).topk(num, dim=1).indices
    chosen = joined.gather(1, columns).sort(dim=1).values
    exact = (queries[:, None].double() * keys[chosen].double()).sum(dim=2).float()
    order = exact.argsort(dim=1, descending=True, stable=True)[:, :k]
    return exact.gather(1, order), chosen.gather(1, order)


def pairs_above(vectors: Float[Any, "n d"], others: Float[Any, "m d"] | None, min_cosine: float) -> Pairs:
    """All pairs with a cosine of at least `min_cosine`: of `vectors` with `others`, or of `vectors` among themselves.

    Among themselves each pair comes once, with first < second. Paper section 3 and appendix A.3 (there approximate).
    """
    found = []
    keys = vectors if others is None else others
    for start in range(0, len(vectors), JOIN_ROWS):
        rows = _float32(vectors[start : start + JOIN_ROWS])
        for key_start in range(start if others is None else 0, len(keys), JOIN_ROWS):
            close = rows @ _float32(keys[key_start : key_start + JOIN_ROWS]).T >= min_cosine - MARGIN
            first, second = _nonzero(close)
            first, second = first + start, second + key_start
            if others is None:
                first, second = first[first < second], second[first < second]
            found.append(verified(vectors, keys, first, second, min_cosine))
    return merged(found)


def verified(
    vectors: Float[Any, "n d"],
    keys: Float[Any, "m d"],
    first: Int[np.ndarray, " p"],
    second: Int[np.ndarray, " p"],
    min_cosine: float,
) -> Pairs:
    """Those of the candidate pairs (row of `vectors`, row of `keys`) at or above `min_cosine`, with exact cosines."""
    cosine = np.empty(len(first), np.float32)
    for start in range(0, len(first), VERIFY_ROWS):
        part = slice(start, start + VERIFY_ROWS)
        cosine[part] = _row_products(vectors[first[part]], keys[second[part]])
    keep = cosine >= np.float32(min_cosine)
    return Pairs(first[keep], second[keep], np.minimum(cosine[keep], np.float32(1)))


def merged(parts: list[Pairs]) -> Pairs:
    """All pairs of `parts`, in order."""
    if not parts:
        return Pairs(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32))
    first, second, cosine = (np.concatenate(column) for column in zip(*parts, strict=True))
    order = np.lexsort((second, first))
    return Pairs(first[order], second[order], cosine[order])


def _row_products(left: Any, right: Any) -> NDArray[np.float64]:
    if isinstance(left, np.ndarray):
        return (left.astype(np.float64) * right).sum(axis=1)
    return (left.double() * right.double()).sum(dim=1).cpu().numpy()


def _nonzero(mask: Any) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    if isinstance(mask, np.ndarray):
        rows, columns = mask.nonzero()
        return rows, columns
    rows, columns = mask.nonzero(as_tuple=True)
    return rows.cpu().numpy(), columns.cpu().numpy()


def _float32(vectors: Any) -> Any:
    return vectors.astype(np.float32, copy=False) if isinstance(vectors, np.ndarray) else vectors.float()
