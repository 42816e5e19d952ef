"""Exact search by cosine: the k nearest keys of every query.

Matrix products of blocks, so that memory is bounded by the block and not by the number of vectors. NumPy arrays stay in
NumPy (this module imports no torch, which the stages that only search are glad of); torch tensors stay on their device.
Vectors are of unit length; float16 ones are multiplied as float32.
"""

from typing import Any

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import NDArray

QUERY_ROWS = 512
KEY_ROWS = 16384
SPARE = 8  # candidates beyond k, among which float64 decides
GATHERED = 2**24  # numbers gathered at once for that
TIE = 2.0**-18  # float32 products of equal vectors differ by less


def top_k(
    queries: Float[Any, "q d"], keys: Float[Any, "n d"], k: int
) -> tuple[Float[Any, "q k"], Int[Any, "q k"]]:
    """Cosines (float32, best first) and row numbers (int64) of the k nearest keys of every query; of equals the first.

    NumPy arrays give arrays, torch tensors give tensors on the same device. Candidates come from float32 products,
    their cosines and order from sums in float64, so that equal keys are equal wherever they stand in a block. Where
    more keys tie for the last place than there are candidates, all keys are looked at again.
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
    cosine, index, crowded = (_top_k_numpy if isinstance(keys, np.ndarray) else _top_k_torch)(queries, keys, k, num)
    for row in crowded if num < len(keys) else []:
        cosine[row], index[row] = _top_k_of_one(queries[row], keys, k)
    return cosine, index


def _top_k_of_one(query: Any, keys: Any, k: int) -> tuple[Any, Any]:
    """`top_k` of a query for which more keys tie than there are candidates."""
    blocks = [keys[start : start + KEY_ROWS] for start in range(0, len(keys), KEY_ROWS)]
    products = np.concatenate([_array(_float32(block) @ _float32(query)) for block in blocks])
    least = np.partition(products, -k)[-k] - TIE
    exact = np.full(len(keys), -np.inf, np.float32)
    wide = _array(query).astype(np.float64)
    for number, block in enumerate(blocks):
        near = np.flatnonzero(products[number * KEY_ROWS : (number + 1) * KEY_ROWS] >= least)
        exact[near + number * KEY_ROWS] = (_array(block[near]) * wide).sum(axis=1)
    index = np.argsort(-exact, kind="stable")[:k]
    if isinstance(keys, np.ndarray):
        return exact[index], index
    import torch

    return torch.from_numpy(exact[index]), torch.from_numpy(index)


def _array(vectors: Any) -> NDArray[Any]:
    return vectors if isinstance(vectors, np.ndarray) else vectors.cpu().numpy()


def _top_k_numpy(queries: Any, keys: Any, k: int, num: int) -> tuple[Any, Any, list[int]]:
    """The k nearest of `num` candidates, and the queries for which there may be better ones."""
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
    crowded = np.flatnonzero(best.min(axis=1, initial=np.inf) > np.partition(best, -k, axis=1)[:, -k] - TIE).tolist()
    index = np.sort(index, axis=1)
    exact = (queries[:, None].astype(np.float64) * keys[index]).sum(axis=2).astype(np.float32)
    order = np.argsort(-exact, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(exact, order, axis=1), np.take_along_axis(index, order, axis=1), crowded


def _top_k_torch(queries: Any, keys: Any, k: int, num: int) -> tuple[Any, Any, list[int]]:
    """As `_top_k_numpy`."""
    import torch

    best, index = [], []
    for start in range(0, len(keys), KEY_ROWS):
        cosine = queries.float() @ keys[start : start + KEY_ROWS].float().T
        values, columns = cosine.topk(min(num, cosine.shape[1]), dim=1)
        best.append(values)
        index.append(columns + start)
    values, columns = torch.cat(best, dim=1).topk(num, dim=1)
    crowded = (values[:, -1] > values[:, k - 1] - TIE).nonzero()[:, 0].tolist()
    chosen = torch.cat(index, dim=1).gather(1, columns).sort(dim=1).values
    exact = (queries[:, None].double() * keys[chosen].double()).sum(dim=2).float()
    order = exact.argsort(dim=1, descending=True, stable=True)[:, :k]
    return exact.gather(1, order), chosen.gather(1, order), crowded


def _float32(vectors: Any) -> Any:
    return vectors.astype(np.float32, copy=False) if isinstance(vectors, np.ndarray) else vectors.float()
