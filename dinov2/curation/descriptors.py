"""Descriptors on disk: float16 `.npy` blocks of unit-length rows in the store, aligned with a table of samples.

`embeddings.json` names the blocks, in order: {set: {kind: [blob, ...]}}; the sets are pool, seeds and evaluation, the
kinds copy and semantic. `<set>.parquet` has their samples (EMBEDDED), row by row. Imports no torch.
"""

import json
import tempfile
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from jaxtyping import Float

from dinov2.params import InputError
from dinov2.records import MANIFEST, read_table
from dinov2.store import Store

EMBEDDED = MANIFEST.append(pa.field("path", pa.string()))  # below the seeds or evaluation folder; null in the pool

SetName = Literal["pool", "seeds", "evaluation"]
Kind = Literal["copy", "semantic"]
LENGTH_TOLERANCE = 5e-3  # float16 keeps 11 bits


def store_block(store: Store, work: Path, vectors: Float[np.ndarray, "n d"]) -> str:
    """Put unit-length rows into the store as float16; returns the blob's name."""
    with tempfile.NamedTemporaryFile(dir=work, suffix=".npy", delete=False) as stream:
        np.save(stream, vectors.astype(np.float16))
    return store.add(Path(stream.name), ".npy")


def read_embedded(embed: Path, name: SetName) -> list[dict[str, Any]]:
    """Samples of a set, in the order of its descriptors."""
    return read_table(embed / f"{name}.parquet", EMBEDDED)


def read_descriptors(embed: Path, name: SetName, kind: Kind, store: Store) -> Float[np.ndarray, "n d"]:
    """All descriptors of a set as float32, made exactly of unit length again after their rounding to float16.

    Raises InputError if a block is absent or damaged, holds NaN, or if rows and samples don't match.
    """
    index = embed / "embeddings.json"
    try:
        names = json.loads(index.read_text())[name][kind]
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{index} does not list {kind} descriptors of {name} ({error}); run embed again") from error
    store.check(names, needed_by=index)
    blocks = [_load(store, blob, needed_by=index) for blob in names]
    vectors = np.concatenate(blocks).astype(np.float32) if blocks else np.empty((0, 1), np.float32)
    num_rows = len(read_embedded(embed, name))
    if len(vectors) != num_rows:
        raise InputError(f"{index}: {len(vectors)} {kind} descriptors for {num_rows} images of {name}; run embed again")
    lengths = np.linalg.norm(vectors, axis=1)
    wrong = np.flatnonzero(~(np.abs(lengths - 1) < LENGTH_TOLERANCE))  # NaN is wrong too
    if len(wrong):
        raise InputError(
            f"{index}: {len(wrong)} {kind} descriptors of {name} are not of unit length "
            f"(row {wrong[0]}: {lengths[wrong[0]]}); run embed again"
        )
    return vectors / lengths[:, None]


def _load(store: Store, blob: str, *, needed_by: Path) -> Float[np.ndarray, "n d"]:
    try:
        return np.load(store.local(blob), allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise InputError(f"{needed_by}: blob {blob} is damaged ({error}); delete it and run embed again") from error
