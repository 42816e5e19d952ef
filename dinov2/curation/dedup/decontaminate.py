"""Which images are copies of evaluation images: of any number of sets, each with its own threshold.

No pair is missed: every image is compared with every evaluation image, of which there are few.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
from jaxtyping import Float, Int

from dinov2.curation.dedup.join import EXACT, Pairs, merged, tiles_of_pairs
from dinov2.curation.dedup.products import Engine
from dinov2.curation.descriptors import Rows
from dinov2.params import InputError
from dinov2.tables import read_batches

FEW = 2**18  # pairs that are not worth a sort
PLACE = pa.schema([("id", pa.string()), ("path", pa.string())])


def set_of_each(embed: Path, folders: Mapping[str, str]) -> Int[np.ndarray, " m"]:
    """For each evaluation image the place of its set in `folders`: that of the longest folder that holds it.

    Raises InputError if an image is in no set or a set has no image: either would go unnoticed where it matters.
    """
    inside = [(folder.strip("/") + "/" if folder.strip("/") else "", place) for place, folder in
              enumerate(folders.values())]
    inside.sort(key=lambda prefix: -len(prefix[0]))
    found: list[int] = []
    for batch in read_batches(embed / "evaluation.parquet", PLACE):
        for path in batch["path"].to_pylist():
            home = next((place for prefix, place in inside if path.startswith(prefix)), None)
            if home is None:
                raise InputError(
                    f"the evaluation image {path} is in none of dedup.evaluation_sets; add a set with its folder, or "
                    'one with `folder: ""`, which takes all others'
                )
            found.append(home)
    for place, (name, folder) in enumerate(folders.items()):
        if place not in found:
            raise InputError(
                f"dedup.evaluation_sets.{name} has no image: {embed} embedded none below '{folder}' of the evaluation "
                "folder (that another set does not take); mend its folder or remove the set"
            )
    return np.array(found, np.int64)


def contacts_of(
    block: Float[np.ndarray, "n d"],
    held_out: Rows,
    min_cosine: Float[np.ndarray, " m"],
    sets: Int[np.ndarray, " m"],
    products: Engine,
    *,
    at_once: int,
) -> Pairs:
    """For each row of `block` and each set the most similar evaluation image at or above the set's threshold.

    Given are each evaluation image's threshold and the number of its set; `at_once` of them are compared at a time.
    Memory is that of rows times sets, however many images are near. Of equals the first is taken.
    Raises InputError if an evaluation image has no valid descriptor, as its copies would stay.
    """
    best, more, num_more = merged([]), [], 0
    for start in range(0, len(held_out), at_once):
        others = held_out.read(start, start + at_once)
        if not others.any(axis=1).all():
            bad = start + int(np.flatnonzero(~others.any(axis=1))[0])
            raise InputError(
                f"the descriptor of evaluation image {bad} is NaN or not of unit length, so its copies can't be found; "
                "remove that image from the evaluation folder, or run embed again"
            )
        thresholds = min_cosine[start : start + at_once].astype(np.float32)
        for pairs in tiles_of_pairs(block, others, float(thresholds.min()), EXACT, products):
            near = pairs.cosine >= thresholds[pairs.second]
            more.append(Pairs(pairs.first[near], pairs.second[near] + start, pairs.cosine[near]))
            num_more += len(more[-1].first)
            if num_more > max(len(best.first), FEW):
                best, more, num_more = _best([best, *more], sets), [], 0
    return merged([_best([best, *more], sets)])


def _best(parts: list[Pairs], sets: Int[np.ndarray, " m"]) -> Pairs:
    """Of each row and set the pair of highest cosine."""
    first, second, cosine = (np.concatenate(column) for column in zip(*parts, strict=True))
    home = sets[second]
    order = np.lexsort((second, -cosine, home, first))
    first, second, cosine, home = first[order], second[order], cosine[order], home[order]
    new = np.ones(len(first), bool)
    new[1:] = (first[1:] != first[:-1]) | (home[1:] != home[:-1])
    return Pairs(first[new], second[new], cosine[new])
