"""All pairs of near-copies, by our own block join or by faiss. The only file that knows faiss.

Both are exact and both have their pairs computed again in float64, so they give the same pairs with the same cosines.
"""

from typing import Literal

import numpy as np
from jaxtyping import Float

from dinov2.params import InputError
from dinov2.search import MARGIN, Pairs, merged, pairs_above, verified

Method = Literal["exact", "faiss"]
QUERY_ROWS = 16384


def find_pairs(
    vectors: Float[np.ndarray, "n d"], others: Float[np.ndarray, "m d"] | None, min_cosine: float, method: Method
) -> Pairs:
    """Pairs of `vectors` with `others` (None: among themselves, first < second) with a cosine of at least `min_cosine`.

    float32 vectors of unit length. Raises InputError if faiss is asked for and not installed.
    """
    if method == "exact":
        return pairs_above(vectors, others, min_cosine)
    return _faiss_pairs(vectors, others, min_cosine)


def _faiss_pairs(
    vectors: Float[np.ndarray, "n d"], others: Float[np.ndarray, "m d"] | None, min_cosine: float
) -> Pairs:
    try:
        import faiss
    except ImportError as error:
        raise InputError(
            "method is 'faiss', which is not installed; install the extra 'cpu' or 'gpu', or set method to 'exact'"
        ) from error
    keys = np.ascontiguousarray(vectors if others is None else others, np.float32)
    index = faiss.IndexFlatIP(keys.shape[1])
    index.add(keys)
    found = []
    for start in range(0, len(vectors), QUERY_ROWS):
        rows = np.ascontiguousarray(vectors[start : start + QUERY_ROWS], np.float32)
        limits, _, second = index.range_search(rows, min_cosine - MARGIN)
        first = start + np.repeat(np.arange(len(rows)), np.diff(limits.astype(np.int64)))
        if others is None:
            first, second = first[first < second], second[first < second]
        found.append(verified(vectors, keys, first, second, min_cosine))
    return merged(found)
