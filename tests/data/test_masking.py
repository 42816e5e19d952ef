"""Block masks: the reference's statistics."""

import random

import numpy as np
import pytest
import torch

from dinov2.data.masking import draw_blocks, draw_masks, max_block_patches
from dinov2.data.params import MaskParams

PARAMS = MaskParams(probability=0.5, ratio_min=0.1, ratio_max=0.5)


def drawn(step: int, num_images: int = 32, grid: int = 16, group: int = 0) -> torch.Tensor:
    return draw_masks(PARAMS, seed=0, step=step, group=group, num_images=num_images, grid=grid)


@pytest.mark.parametrize(("grid", "mean", "steps"), [(16, 0.2979, 100), (37, 0.2983, 30)])
def test_draw_masks_mean_ratio_is_the_reference_s(grid: int, mean: float, steps: int) -> None:
    ratios = torch.cat([drawn(step, grid=grid).float().mean(2).flatten() for step in range(steps)])
    masked = ratios[ratios > 0]
    assert len(masked) == steps * 32  # exactly half of the 64 crops
    assert masked.mean().item() == pytest.approx(mean, abs=0.002)
    assert masked.min() > 0.09
    assert masked.max() <= 0.5


def test_draw_masks_number_of_patches_has_the_reference_s_bound_and_mean() -> None:
    totals = [int(drawn(step).sum()) for step in range(100)]
    bound = sum(int(256 * high) for high in np.linspace(0.1, 0.5, 33)[1:])
    assert bound == 2496
    assert max(totals) <= bound
    assert np.mean(totals) == pytest.approx(2441, abs=8)


@pytest.mark.parametrize(("grid", "short", "count"), [(16, 0.08, 3000), (37, 0.12, 1000)])
def test_draw_blocks_fall_short_as_often_as_the_reference_s(grid: int, short: float, count: int) -> None:
    generator = random.Random(0)
    num_short = 0
    for _ in range(count):
        aim, mask = int(grid * grid * generator.uniform(0.1, 0.5)), np.zeros((grid, grid), dtype=bool)
        draw_blocks(mask, aim, generator)
        assert mask.sum() <= aim
        num_short += int(mask.sum()) < aim
    assert num_short / count == pytest.approx(short, abs=0.025)


def test_draw_masks_ratios_are_spread_evenly_in_each_group() -> None:
    ratios = drawn(3).float().mean(2).flatten()
    masked = np.sort(ratios[ratios > 0].numpy())
    bounds = np.linspace(0.1, 0.5, 33)
    assert (masked <= bounds[1:]).all()  # the i-th aims below the i-th bound and never exceeds its aim
    assert (masked > bounds[:-1] - 2 / 256).mean() > 0.8  # and few fall short


def test_draw_masks_are_blocks() -> None:
    mask = drawn(0).view(-1, 16, 16).float()
    neighbours = (mask[:, :, 1:] * mask[:, :, :-1]).sum() / mask.sum()
    assert neighbours > 0.6  # independent patches would give 0.28


def test_draw_masks_depend_on_seed_step_and_group_alone() -> None:
    assert torch.equal(drawn(1), drawn(1))
    assert not torch.equal(drawn(1), drawn(2))
    assert not torch.equal(drawn(1), drawn(1, group=1))


def test_max_block_patches_rounds_as_the_reference() -> None:
    assert max_block_patches(16) == 128
    assert max_block_patches(37) == 666
