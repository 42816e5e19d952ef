"""Descriptors that learn nothing, for the same k-NN: what colours and raw pixels alone can tell.

Where labels name the source photograph these are hard to beat, and a report that hid them would flatter the network.
"""

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from dinov2.eval.features import ImageSet, crops


def colour_histogram(image: UInt8[np.ndarray, "h w 3"], bins: int) -> Float[Tensor, " bins3"]:
    """Share of the pixels in each of bins x bins x bins boxes of RGB, under a square root.

    The cosine of two such vectors is the Bhattacharyya coefficient of the histograms.
    """
    levels = image.astype(np.int64) * bins // 256
    boxes = (levels[..., 0] * bins + levels[..., 1]) * bins + levels[..., 2]
    counts = np.bincount(boxes.ravel(), minlength=bins**3)
    return torch.from_numpy(np.sqrt(counts / boxes.size)).float()


def raw_pixels(image: UInt8[np.ndarray, "h w 3"], side_px: int) -> Float[Tensor, " side2x3"]:
    """The image shrunk to side_px x side_px, less its mean, as one vector: their cosine is a correlation."""
    shrunk = np.asarray(Image.fromarray(image).resize((side_px, side_px), Image.Resampling.BOX), dtype=np.float32)
    return torch.from_numpy(shrunk.ravel() - shrunk.mean())


def colour_histograms(images: ImageSet, *, size_px: int, bins: int) -> Float[Tensor, "n bins3"]:
    """`colour_histogram` of the centre crop of every image."""
    return torch.stack([colour_histogram(image, bins) for image in crops(images, size_px)])


def pixel_vectors(images: ImageSet, *, size_px: int, side_px: int) -> Float[Tensor, "n side2x3"]:
    """`raw_pixels` of the centre crop of every image."""
    return torch.stack([raw_pixels(image, side_px) for image in crops(images, size_px)])
