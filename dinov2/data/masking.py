"""Block masks for iBOT, drawn as the reference draws them (from BEiT), over groups of the global batch.

Of the 2B global crops of a group exactly int(2B p) get a mask; the i-th of them aims at a share drawn from the i-th of
equal parts of [ratio_min, ratio_max], so that every batch has the same spread of shares. Masks never exceed their aim.
"""

import random
from math import exp, log, sqrt

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from dinov2.data.params import MaskParams

MIN_BLOCK_PATCHES = 4
LOG_RATIO = (log(0.3), log(1 / 0.3))  # height / width of a block
NUM_TRIES = 10


def draw_masks(
    params: MaskParams, *, seed: int, step: int, group: int, num_images: int, grid: int
) -> Bool[Tensor, "2 b n"]:
    """Masks of one group of b images: both global crops, n = grid * grid patches, True is masked."""
    generator = random.Random(f"masks {seed} {step} {group}")
    num_crops = 2 * num_images
    num_masked = int(num_crops * params.probability)
    bounds = np.linspace(params.ratio_min, params.ratio_max, num_masked + 1).tolist()
    masks = np.zeros((num_crops, grid, grid), dtype=bool)
    places = list(range(num_crops))
    generator.shuffle(places)
    for place, low, high in zip(places, bounds[:-1], bounds[1:], strict=False):
        draw_blocks(masks[place], int(grid * grid * generator.uniform(low, high)), generator)
    return torch.from_numpy(masks).view(2, num_images, grid * grid)


def max_masked(params: MaskParams, *, num_images: int, grid: int) -> int:
    """Patches that the masks of one group may cover at most (2,496 of 32 images with the paper's values)."""
    num_masked = int(2 * num_images * params.probability)
    bounds = np.linspace(params.ratio_min, params.ratio_max, num_masked + 1).tolist()
    return sum(int(grid * grid * high) for high in bounds[1:])


def draw_blocks(mask: np.ndarray, num_patches: int, generator: random.Random) -> None:
    """Mask rectangles in `mask` [grid grid] until `num_patches` are masked or none of ten more rectangles fits."""
    grid = len(mask)
    missing = num_patches
    while missing > 0:
        added = _draw_block(mask, min(missing, max_block_patches(grid)), generator)
        if added == 0:
            return
        missing -= added


def max_block_patches(grid: int) -> int:
    """Largest area of one block: half the grid, as the reference rounds it (128 of 16 x 16, 666 of 37 x 37)."""
    return grid // 2 * grid


def _draw_block(mask: np.ndarray, max_area: int, generator: random.Random) -> int:
    """Mask one rectangle that adds from 1 to `max_area` patches; returns how many it added, 0 after ten failures."""
    grid = len(mask)
    for _ in range(NUM_TRIES):
        area = generator.uniform(MIN_BLOCK_PATCHES, max_area)
        ratio = exp(generator.uniform(*LOG_RATIO))
        height, width = round(sqrt(area * ratio)), round(sqrt(area / ratio))
        if height >= grid or width >= grid:
            continue
        top = int(generator.random() * (grid - height + 1))
        left = int(generator.random() * (grid - width + 1))
        block = mask[top : top + height, left : left + width]
        added = height * width - int(np.count_nonzero(block))
        if 0 < added <= max_area:
            block[:] = True
            return added
    return 0
