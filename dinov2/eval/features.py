"""Frozen features of a folder of labelled images: the class token and the mean of the patch tokens.

Images are resized and cropped at the centre to the image size that the backbone was finished at (its card), so that each
network is judged as it was trained: that of `highres` on its larger images, where position embeddings need no resizing.
"""

import logging
from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from dinov2.data.decode import DecodeError, center_crop, decode_rgb, normalise
from dinov2.data.sampler import FolderSource
from dinov2.models.vit import VisionTransformer

log = logging.getLogger(__name__)
Image = UInt8[np.ndarray, "h w 3"]


class ImageSet(NamedTuple):
    """Which images of a folder can be read, in the order of the folder's names."""

    source: FolderSource
    indices: list[int]
    """Those of the source's images that decode."""
    labels: list[str]
    """Label of each of them."""
    names: list[str]
    """Name of each of them, to tell its prediction by."""
    num_undecodable: int


class Features(NamedTuple):
    """Frozen features, one row an image."""

    cls: Float[Tensor, "n d"]
    mean_patch: Float[Tensor, "n d"]


def readable_images(source: FolderSource) -> ImageSet:
    """The images of `source` that have a label and decode; the others are counted and named in the log."""
    indices, labels, names, bad = [], [], [], 0
    for index in range(len(source)):
        label = source.label(index)
        try:
            decode_rgb(source.read(index))
        except DecodeError as error:
            log.warning("%s does not decode (%s) and is left out", source.id(index), error)
            bad += 1
            continue
        indices.append(index)
        labels.append(label if label is not None else "")
        names.append(source.id(index))
    return ImageSet(source, indices, labels, names, bad)


def crops(images: ImageSet, size_px: int) -> Iterator[Image]:
    """Centre crops of side `size_px`, one after the other, so that a large folder needs little memory."""
    for index in images.indices:
        yield center_crop(decode_rgb(images.source.read(index)), size_px)


def batches(images: ImageSet, size_px: int, batch_size: int) -> Iterator[UInt8[Tensor, "b 3 s s"]]:
    """Centre crops in batches; the last may be smaller."""
    stream = crops(images, size_px)
    while batch := list(islice(stream, batch_size)):
        yield torch.from_numpy(np.stack(batch)).permute(0, 3, 1, 2).contiguous()


@torch.inference_mode()
def extract(model: VisionTransformer, images: ImageSet, *, size_px: int, batch_size: int) -> Features:
    """Class token and mean patch token after the final norm, in fp32, of every image of the set."""
    model.eval()
    cls, mean_patch = [], []
    for batch in batches(images, size_px, batch_size):
        features = model.features(normalise(batch))
        cls.append(features.cls.float())
        mean_patch.append(features.patches.float().mean(dim=1))
    return Features(torch.cat(cls), torch.cat(mean_patch))


def number_labels(labels: list[str], names: list[str]) -> Int[Tensor, " n"]:
    """Class number of each label: its position among the sorted `names`."""
    numbers = {name: number for number, name in enumerate(names)}
    return torch.tensor([numbers[label] for label in labels])
