"""Faces made unrecognisable: a Gaussian blur as wide as the face asks for, that fades out around it."""

import io
from math import ceil

import numpy as np
from jaxtyping import Float64, UInt8
from PIL import Image, ImageFilter

from dinov2.curation.filter.faces import FacesParams

REACH = 3  # standard deviations around a region that the blur inside it draws from


def blur_faces(
    image: UInt8[np.ndarray, "h w 3"], boxes: Float64[np.ndarray, "n 4"], params: FacesParams
) -> UInt8[np.ndarray, "h w 3"]:
    """A copy of `image`, blurred fully within each widened box and less and less up to one deviation outside it."""
    blurred = image.copy()
    height, width = image.shape[:2]
    for left, top, right, bottom in boxes.tolist():
        side = max(right - left, bottom - top)
        sigma, margin = params.sigma_share * side, params.margin_share * side
        reach = margin + REACH * sigma
        x0, y0 = max(0, int(left - reach)), max(0, int(top - reach))
        x1, y1 = min(width, ceil(right + reach)), min(height, ceil(bottom + reach))
        region = blurred[y0:y1, x0:x1]
        soft = np.asarray(Image.fromarray(region).filter(ImageFilter.GaussianBlur(sigma)), np.float64)
        rows = _fade(np.arange(y0, y1) + 0.5, top - margin, bottom + margin, sigma)
        columns = _fade(np.arange(x0, x1) + 0.5, left - margin, right + margin, sigma)
        weight = (rows[:, None] * columns[None])[..., None]
        blurred[y0:y1, x0:x1] = np.rint(weight * soft + (1 - weight) * region).astype(np.uint8)
    return blurred


def _fade(place: Float64[np.ndarray, " n"], low: float, high: float, length: float) -> Float64[np.ndarray, " n"]:
    """1 between `low` and `high`, falling to 0 over `length` outside them."""
    outside = np.maximum(np.maximum(low - place, place - high), 0)
    return np.clip(1 - outside / length, 0, 1)


def encode_jpeg(image: UInt8[np.ndarray, "h w 3"], quality: int) -> bytes:
    """A JPEG without metadata; equal pixels give equal bytes."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()
