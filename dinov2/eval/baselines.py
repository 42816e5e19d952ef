"""Descriptors that learn nothing, for the same k-NN: what colours and raw pixels alone can tell.

Where labels name the source photograph these are hard to beat, and a report that hid them would flatter the network.
"""

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional as F

from dinov2.eval.features import ImageSet, crops


def colour_histogram(image: UInt8[Tensor, "3 h w"], bins: int) -> Float[Tensor, " bins3"]:
    """Share of the pixels in each of bins x bins x bins boxes of RGB, under a square root.

    The cosine of two such vectors is the Bhattacharyya coefficient of the histograms.
    """
    red, green, blue = image.long() * bins // 256
    boxes = (red * bins + green) * bins + blue
    counts = torch.bincount(boxes.flatten(), minlength=bins**3)
    return (counts / boxes.numel()).sqrt()


def raw_pixels(image: UInt8[Tensor, "3 h w"], side_px: int) -> Float[Tensor, " side2x3"]:
    """The image shrunk to side_px x side_px, less its mean, as one vector: their cosine is a correlation."""
    shrunk = F.interpolate(image[None].float(), size=(side_px, side_px), mode="bilinear", antialias=True)
    return (shrunk - shrunk.mean()).flatten()


def colour_histograms(images: ImageSet, *, size_px: int, bins: int) -> Float[Tensor, "n bins3"]:
    """`colour_histogram` of the centre crop of every image."""
    return torch.stack([colour_histogram(image, bins) for image in crops(images, size_px)])


def pixel_vectors(images: ImageSet, *, size_px: int, side_px: int) -> Float[Tensor, "n side2x3"]:
    """`raw_pixels` of the centre crop of every image."""
    return torch.stack([raw_pixels(image, side_px) for image in crops(images, size_px)])
