"""Frozen features of a folder of labelled images: the class token and the mean of the patch tokens.

Images are resized and cropped at the centre to the image size that the backbone was finished at (its card), so that
each network is judged as it was trained: that of `highres` on its larger images, whose grid its positions have.
"""

import logging
from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from dinov2.data.decode import DecodeError, decode_rgb
from dinov2.data.sources import FolderSource
from dinov2.data.view import center_crop
from dinov2.hub import BackboneCard
from dinov2.models.vit import VisionTransformer

log = logging.getLogger(__name__)


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


class FrozenFeatures(NamedTuple):
    """Frozen features, one row an image."""

    cls: Float[Tensor, "n d"]
    mean_patch: Float[Tensor, "n d"]


def readable_images(source: FolderSource) -> ImageSet:
    """The images of `source` that have a label and decode; those that don't decode are counted and named in the log."""
    indices, labels, names, bad = [], [], [], 0
    for index in range(len(source)):
        label = source.label(index)
        if label is None:
            continue  # loose in the folder: says nothing about any class
        try:
            decode_rgb(source.read(index))
        except (DecodeError, OSError) as error:
            log.warning("%s does not decode (%s) and is left out", source.id(index), error)
            bad += 1
            continue
        indices.append(index)
        labels.append(label)
        names.append(source.id(index))
    return ImageSet(source, indices, labels, names, bad)


def without_labels(images: ImageSet, known: set[str]) -> tuple[ImageSet, int]:
    """The images whose label is among `known`, and the number of the others, which are named in the log."""
    places = [place for place, label in enumerate(images.labels) if label in known]
    for place, label in enumerate(images.labels):
        if label not in known:
            log.warning("%s has label '%s', which no training image has, and is left out", images.names[place], label)
    return chosen(images, places), len(images.labels) - len(places)


def chosen(images: ImageSet, places: list[int]) -> ImageSet:
    """The images at `places` of the set, in that order."""
    return images._replace(
        indices=[images.indices[place] for place in places],
        labels=[images.labels[place] for place in places],
        names=[images.names[place] for place in places],
    )


def crops(images: ImageSet, size_px: int) -> Iterator[UInt8[Tensor, "3 s s"]]:
    """Centre crops of side `size_px`, one after the other, so that a large folder needs little memory."""
    for index in images.indices:
        yield center_crop(decode_rgb(images.source.read(index)), size_px)


def prepare(images: UInt8[Tensor, "b 3 s s"], card: BackboneCard) -> Float[Tensor, "b 3 s s"]:
    """Bytes to floats, less the mean and divided by the deviation that the backbone was trained with."""
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (card.mean, card.std))
    return (images.float() / 255 - mean) / std


@torch.inference_mode()
def extract(model: VisionTransformer, images: ImageSet, card: BackboneCard, *, batch_size: int) -> FrozenFeatures:
    """Class token and mean patch token after the final norm, in fp32, of every image of the set."""
    model.eval()
    cls, mean_patch = [], []
    stream = crops(images, card.image_size_px)
    while batch := list(islice(stream, batch_size)):
        features = model.features(prepare(torch.stack(batch), card))
        cls.append(features.cls.float())
        mean_patch.append(features.patches.float().mean(dim=1))
    return FrozenFeatures(torch.cat(cls), torch.cat(mean_patch))


def number_labels(labels: list[str], names: list[str]) -> Int[Tensor, " n"]:
    """Class number of each label: its position among the sorted `names`."""
    numbers = {name: number for number, name in enumerate(names)}
    return torch.tensor([numbers[label] for label in labels])
