"""What is wrong with an image, if anything: one pure predicate a reason, after one full decode.

Order of judgement: damaged shard, undecodable, too small, extreme aspect, near constant; then, among what is left,
copies by PCA hash. Each image is decoded once, by threads; results keep the order of the manifest.
"""

import hashlib
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any, NamedTuple

import numpy as np
from jaxtyping import UInt8
from pydantic import Field

from dinov2.curation.hashing import PcaHash, PcaHashParams, find_copies, fit_pca_hash
from dinov2.params import InputError, Params
from dinov2.progress import logged
from dinov2.shards import ShardReader

logger = logging.getLogger(__name__)

SAMPLED_PX = 256  # rows and columns that the statistics look at, at least
BATCH_IMAGES = 1024  # decoded between two looks at the results


class FilterParams(Params):
    """What makes an image unfit."""

    min_side_px: Annotated[int, Field(gt=0)]
    """Images with a shorter side below this are dropped."""
    max_aspect: Annotated[float, Field(ge=1)]
    """Longer side over shorter side; more is dropped."""
    min_grey_std: Annotated[float, Field(ge=0, le=127.5)]
    """Standard deviation of the grey values (0 to 255); images below it are near constant."""
    max_dominant_share: Annotated[float, Field(gt=0, le=1)]
    """Share of the most frequent colour (16 levels a channel); images above it are near constant."""
    pca_hash: PcaHashParams
    """Removal of copies."""
    max_dropped_share: Annotated[float, Field(ge=0, le=1)]
    """Share of images that may be dropped, for all reasons, before the stage stops."""


class Look(NamedTuple):
    """What one decode tells of an image."""

    width: int
    """Pixels, upright."""
    height: int
    """Pixels, upright."""
    grey_std: float
    dominant_share: float
    thumbnail: UInt8[np.ndarray, "s s"]


class FilterResult(NamedTuple):
    """Rows of MANIFEST with width and height, rows of REMOVED, the fitted hash, and counts."""

    rows: list[dict[str, Any]]
    removed: list[dict[str, Any]]
    pca_hash: PcaHash
    metrics: dict[str, float]


def too_small(look: Look, params: FilterParams) -> str | None:
    """`too_small` where the shorter side is below `min_side_px`."""
    return "too_small" if min(look.width, look.height) < params.min_side_px else None


def extreme_aspect(look: Look, params: FilterParams) -> str | None:
    """`extreme_aspect` where the longer side is more than `max_aspect` of the shorter one."""
    return "extreme_aspect" if max(look.width, look.height) > params.max_aspect * min(look.width, look.height) else None


def near_constant(look: Look, params: FilterParams) -> str | None:
    """`near_constant` where grey hardly varies or one colour covers almost everything."""
    is_flat = look.grey_std < params.min_grey_std or look.dominant_share > params.max_dominant_share
    return "near_constant" if is_flat else None


PREDICATES: tuple[Callable[[Look, FilterParams], str | None], ...] = (too_small, extreme_aspect, near_constant)


def judge(look: Look, params: FilterParams) -> str | None:
    """The first reason against an image, or None."""
    return next(filter(None, (predicate(look, params) for predicate in PREDICATES)), None)


def look_at(image: UInt8[np.ndarray, "h w 3"], thumbnail_px: int) -> Look:
    """Size, statistics and thumbnail of a decoded image."""
    from PIL import Image

    height, width = image.shape[:2]
    sample = image[:: max(1, height // SAMPLED_PX), :: max(1, width // SAMPLED_PX)]
    levels = (sample >> 4).astype(np.int64)
    colours = (levels[..., 0] << 8) | (levels[..., 1] << 4) | levels[..., 2]
    dominant = np.bincount(colours.ravel()).max() / colours.size
    grey = Image.fromarray(image).convert("L")
    grey_std = float(np.asarray(grey)[:: max(1, height // SAMPLED_PX), :: max(1, width // SAMPLED_PX)].std())
    thumbnail = grey.resize((thumbnail_px, thumbnail_px), Image.Resampling.BOX)
    return Look(width, height, grey_std, float(dominant), np.asarray(thumbnail))


def filter_images(manifest: list[dict[str, Any]], params: FilterParams, reader: ShardReader) -> FilterResult:
    """Judge every image of `manifest` (rows of MANIFEST).

    Of copies by PCA hash the one with most pixels stays, of equals the first in the manifest; it is the witness. An
    image that its shard does not hold whole, with the bytes its id says, is dropped as `damaged_shard`, and the shard
    is named in the log.
    Raises InputError if more than `max_dropped_share` are dropped.
    """
    fit: list[dict[str, Any]] = []
    thumbnails: list[np.ndarray] = []
    removed: list[dict[str, Any]] = []
    damaged: Counter[str] = Counter()
    outcomes = logged(_looks(manifest, params, reader), total=len(manifest), what="filter: images", logger=logger)
    for row, outcome in zip(manifest, outcomes, strict=True):
        reason = outcome if isinstance(outcome, str) else judge(outcome, params)
        if reason == "damaged_shard":
            damaged[row["shard"]] += 1
        if isinstance(outcome, str) or reason is not None:
            removed.append(_removed(row, str(reason), None))
        else:
            fit.append({**row, "width": outcome.width, "height": outcome.height})
            thumbnails.append(outcome.thumbnail)
    for shard, count in sorted(damaged.items()):
        logger.warning("shard %s is damaged: %d images of it can't be read, left out", shard, count)
    size_px = params.pca_hash.thumbnail_px
    stack = np.stack(thumbnails) if thumbnails else np.zeros((0, size_px, size_px), np.uint8)
    pca_hash = fit_pca_hash(stack, params.pca_hash)
    copies = _copies(fit, pca_hash.hash(stack), params.pca_hash)
    removed += [_removed(fit[index], "pca_hash_duplicate", fit[copies[index]]["id"]) for index in sorted(copies)]
    _check_share(removed, len(manifest), params)
    rows = [row for index, row in enumerate(fit) if index not in copies]
    metrics = {"share_kept": len(rows) / max(len(manifest), 1), "damaged_shards": float(len(damaged))}
    return FilterResult(rows, removed, pca_hash, metrics)


def _looks(manifest: list[dict[str, Any]], params: FilterParams, reader: ShardReader) -> Iterator[Look | str]:
    """A look at each image, or the reason why there is none, in order; decoded by one thread a core."""
    from dinov2.data.decode import DecodeError, decode_rgb  # imported in the job, not in the submitter

    def look(row: Mapping[str, Any]) -> Look | str:
        try:
            data = reader.read(row)
        except OSError:
            return "damaged_shard"
        if hashlib.sha256(data).hexdigest() != row["id"]:
            return "damaged_shard"
        try:
            return look_at(decode_rgb(data), params.pca_hash.thumbnail_px)
        except DecodeError:
            return "undecodable"

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        for start in range(0, len(manifest), BATCH_IMAGES):
            yield from pool.map(look, manifest[start : start + BATCH_IMAGES])


def _copies(rows: list[dict[str, Any]], hashes: UInt8[np.ndarray, "n bytes"], params: PcaHashParams) -> dict[int, int]:
    order = np.array(sorted(range(len(rows)), key=lambda i: (-rows[i]["width"] * rows[i]["height"], i)), dtype=np.int64)
    return find_copies(hashes, order, num_bits=params.num_bits, max_hamming_bits=params.max_hamming_bits)


def _removed(row: Mapping[str, Any], reason: str, witness_id: str | None) -> dict[str, Any]:
    return {"id": row["id"], "url": row["url"], "reason": reason, "witness_id": witness_id, "cosine": None}


def _check_share(removed: list[dict[str, Any]], num_images: int, params: FilterParams) -> None:
    """Raise InputError if too much is dropped, naming the reasons."""
    if len(removed) <= params.max_dropped_share * num_images and len(removed) < num_images:
        return
    counts = Counter(row["reason"] for row in removed)
    reasons = ", ".join(
        f"{count} {reason}" for reason, count in sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    )
    raise InputError(
        f"{len(removed)} of {num_images} images are unfit ({reasons}); give better images, "
        f"or raise filter.max_dropped_share ({params.max_dropped_share})"
    )
