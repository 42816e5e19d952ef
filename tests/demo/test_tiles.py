"""No pixel is shared between roles, and a role's tiles are no near-copies of each other."""

import itertools

import numpy as np
import pytest
from PIL import Image

from demo.photographs import open_photograph, packaged_photographs
from demo.tiles import MAX_OVERLAP, NUM_TILES, SMALLEST_PHOTOGRAPH_PX, cut_tiles, overlap, regions


@pytest.mark.parametrize("size_px", [(512, 512), (451, 300), (SMALLEST_PHOTOGRAPH_PX, 1003)])
def test_regions_of_two_roles_share_no_pixel_and_cover_the_photograph(size_px):
    width_px, height_px = size_px
    times_owned = np.zeros((height_px, width_px), dtype=int)
    for rectangles in regions(width_px, height_px).values():
        for left, top, right, bottom in rectangles:
            times_owned[top:bottom, left:right] += 1
    assert (times_owned == 1).all()


def test_each_role_sees_several_parts_of_the_photograph():
    for rectangles in regions(512, 512).values():
        rows = {top for _, top, _, _ in rectangles}
        assert len(rows) == 2


@pytest.mark.parametrize("label", ["cat", "rocket", "gravel"])
def test_tiles_of_two_roles_share_no_pixel(label):
    (photograph,) = (each for each in packaged_photographs() if each.label == label)
    image = open_photograph(photograph)
    tiles = cut_tiles(image, label)
    painted = {role: np.zeros((image.height, image.width), dtype=bool) for role in NUM_TILES}
    for tile in tiles:
        left, top, right, bottom = tile.box
        painted[tile.role][top:bottom, left:right] = True
    for a, b in itertools.combinations(painted.values(), 2):
        assert a.any() and b.any()
        assert not (a & b).any()
    for a, b in itertools.combinations(tiles, 2):
        assert overlap(a.box, b.box) <= MAX_OVERLAP


def test_plain_photograph_gives_no_tiles():
    assert cut_tiles(Image.new("RGB", (512, 512), (90, 120, 200)), "sky") == []


def test_overlap_of_halves_is_a_third():
    assert overlap((0, 0, 10, 10), (5, 0, 15, 10)) == pytest.approx(1 / 3)
    assert overlap((0, 0, 10, 10), (10, 0, 20, 10)) == 0.0
