"""What is wrong with an image, if anything: one pure predicate a reason.

Order of judgement: damaged shard, too large, undecodable, too small, extreme aspect, near constant, unsafe for work;
then, among what is left, equal ids and copies by PCA hash.
"""

from collections.abc import Callable
from typing import Annotated, NamedTuple

import numpy as np
from jaxtyping import UInt8
from pydantic import Field

from dinov2.curation.filter.faces import FacesParams
from dinov2.curation.filter.hashing import PcaHashParams
from dinov2.curation.filter.nsfw import NsfwParams
from dinov2.params import Params

SAMPLED_PX = 256  # rows and columns that the statistics look at, at least


class FilterParams(Params):
    """What makes an image unfit, and what is done about faces."""

    min_side_px: Annotated[int, Field(gt=0)]
    """Images with a shorter side below this are dropped."""
    max_aspect: Annotated[float, Field(ge=1)]
    """Longer side over shorter side; more is dropped."""
    min_grey_std: Annotated[float, Field(ge=0, le=127.5)]
    """Standard deviation of the grey values (0 to 255); images below it are near constant."""
    max_dominant_share: Annotated[float, Field(gt=0, le=1)]
    """Share of the most frequent colour (16 levels a channel); images above it are near constant."""
    nsfw: NsfwParams | None
    """Images unsafe for work are dropped; null: nobody looks for them."""
    faces: FacesParams | None
    """Faces are blurred; null: nobody looks for them."""
    pca_hash: PcaHashParams
    """Removal of copies."""
    part_images: Annotated[int, Field(gt=0)]
    """Images a part: what a worker does at a time and loses when it is killed; its blurred images make one shard."""


class Look(NamedTuple):
    """What one decode tells of an image."""

    width: int
    """Pixels, upright."""
    height: int
    """Pixels, upright."""
    grey_std: float
    dominant_share: float
    thumbnail: UInt8[np.ndarray, "s s"]
    nsfw_score: float | None
    """None where nobody asked."""


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


def nsfw(look: Look, params: FilterParams) -> str | None:
    """`nsfw` where the score is above `max_score`."""
    if look.nsfw_score is None or params.nsfw is None:
        return None
    return "nsfw" if look.nsfw_score > params.nsfw.max_score else None


PREDICATES: tuple[Callable[[Look, FilterParams], str | None], ...] = (too_small, extreme_aspect, near_constant, nsfw)


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
    return Look(width, height, grey_std, float(dominant), np.asarray(thumbnail), None)
