"""The paper's figure 1: principal components of patch features, as colours.

All patches of the shown images go through one PCA. Its first component parts foreground from background; the next three
are red, green and blue. The same colour in two pictures therefore means a similar feature.
"""

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from PIL import Image
from torch import Tensor

from dinov2.eval.features import prepare
from dinov2.hub import BackboneCard
from dinov2.models.vit import VisionTransformer

GAP_PX = 8  # between two columns; the rows touch, so that a reader of the picture can halve it
BACKGROUND = 0.25  # brightness of background patches: dimmed rather than black, so that nothing is hidden


def spread(labels: list[str], num: int) -> list[int]:
    """Indices of `num` images (or all, if there are fewer), label by label in turn, in the order given."""
    by_label: dict[str, list[int]] = {}
    for index, label in enumerate(labels):
        by_label.setdefault(label, []).append(index)
    turns = sorted((turn, label, index) for label, members in by_label.items() for turn, index in enumerate(members))
    first_turn = [index for turn, _, index in turns if turn == 0]
    if len(first_turn) > num:  # more labels than places: take them evenly
        return [first_turn[place * len(first_turn) // num] for place in range(num)]
    return [index for _, _, index in turns][:num]


def principal_components(features: Float[Tensor, "n p d"]) -> Float[Tensor, "n p 4"]:
    """Scores of every patch on the first four components of all patches together; missing ones are 0.

    A component's sign is arbitrary: the first is turned so that the border of the images has a negative mean, since a
    photograph's border is background more often than its middle, the others so that their largest weight is positive.
    """
    patches = features.flatten(0, 1).double()
    centred = patches - patches.mean(dim=0)
    _, vectors = torch.linalg.eigh(centred.T @ centred)
    basis = vectors.flip(1)[:, :4]
    largest = basis.abs().argmax(dim=0)
    basis = basis * torch.sign(basis[largest, torch.arange(basis.shape[1])])
    scores = torch.zeros(len(patches), 4, dtype=torch.float64)
    scores[:, : basis.shape[1]] = centred @ basis
    scores = scores.unflatten(0, features.shape[:2])
    if scores[:, border(features.shape[1]), 0].mean() > 0:
        scores[..., 0] = -scores[..., 0]
    return scores.float()


def border(num_patches: int) -> Bool[Tensor, " p"]:
    """Which patches of a square grid lie on its border."""
    side = round(num_patches**0.5)
    mask = torch.ones(side, side, dtype=torch.bool)
    mask[1:-1, 1:-1] = False
    return mask.flatten()


def colours(scores: Float[Tensor, "n p 4"]) -> UInt8[np.ndarray, "n side side 3"]:
    """Components 2 to 4 as red, green, blue, stretched from their 2nd to 98th percentile; the background is dimmed."""
    rgb, foreground = scores[..., 1:], scores[..., 0] > 0
    values = rgb[foreground] if foreground.any() else rgb.flatten(0, 1)
    low, high = (torch.quantile(values, q, dim=0) for q in (0.02, 0.98))
    bright = ((rgb - low) / (high - low).clamp(min=1e-12)).clamp(0, 1)
    bright = torch.where(foreground[..., None], bright, bright * BACKGROUND)
    side = round(scores.shape[1] ** 0.5)
    return (bright * 255).round().byte().reshape(-1, side, side, 3).numpy()


@torch.inference_mode()
def pca_picture(
    model: VisionTransformer, images: UInt8[Tensor, "n 3 s s"], card: BackboneCard, *, tile_px: int
) -> Image.Image:
    """Two rows of tiles of side `tile_px`: the images above, the components of their patches below."""
    model.eval()
    patches = torch.cat([model.features(prepare(image[None], card)).patches.float() for image in images])
    components = colours(principal_components(patches))
    photos = images.permute(0, 2, 3, 1).numpy()
    picture = Image.new("RGB", ((tile_px + GAP_PX) * len(photos) - GAP_PX, tile_px * 2), "white")
    for column, (photo, component) in enumerate(zip(photos, components, strict=True)):
        left = column * (tile_px + GAP_PX)
        picture.paste(_tile(photo, tile_px, Image.Resampling.LANCZOS), (left, 0))
        picture.paste(_tile(component, tile_px, Image.Resampling.BICUBIC), (left, tile_px))
    return picture


def _tile(image: np.ndarray, tile_px: int, filter_: Image.Resampling) -> Image.Image:
    return Image.fromarray(image).resize((tile_px, tile_px), filter_)
