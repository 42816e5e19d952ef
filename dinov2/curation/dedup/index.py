"""The same pairs by faiss's flat index, to check our join against. The only file that knows faiss."""

import numpy as np
from jaxtyping import Float

from dinov2.curation.dedup.join import Pairs, merged, verified
from dinov2.curation.dedup.products import MARGIN
from dinov2.params import InputError

QUERY_ROWS = 16384


def faiss_pairs_above(
    left: Float[np.ndarray, "n d"], right: Float[np.ndarray, "m d"] | None, min_cosine: float
) -> Pairs:
    """What `join.pairs_above` gives with the exact screen. Raises InputError if faiss is not installed."""
    try:
        import faiss
    except ImportError as error:
        raise InputError(
            "method is 'faiss', which is not installed; install the extra 'cpu' or 'gpu', or set method to 'exact'"
        ) from error
    keys = np.ascontiguousarray(left if right is None else right, np.float32)
    index = faiss.IndexFlatIP(keys.shape[1])
    index.add(keys)
    found = []
    for start in range(0, len(left), QUERY_ROWS):
        rows = np.ascontiguousarray(left[start : start + QUERY_ROWS], np.float32)
        limits, _, second = index.range_search(rows, min_cosine - MARGIN)
        first = start + np.repeat(np.arange(len(rows)), np.diff(limits.astype(np.int64)))
        if right is None:
            first, second = first[first < second], second[first < second]
        found.append(verified(left, keys, first, second, min_cosine))
    return merged(found)
