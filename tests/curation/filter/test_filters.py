"""Filters: each reason on an image made for it, and what one decode measures."""

import numpy as np
import pytest

from dinov2.curation.filter.filters import FilterParams, Look, judge, look_at
from dinov2.curation.filter.hashing import PcaHashParams
from dinov2.curation.filter.nsfw import NsfwParams
from dinov2.params import InputError, validate

PARAMS = FilterParams(
    min_side_px=32,
    max_aspect=3.0,
    min_grey_std=4.0,
    max_dominant_share=0.95,
    nsfw=NsfwParams(path="model.onnx", sha256="0" * 64, max_score=0.7),
    faces=None,
    pca_hash=PcaHashParams(num_bits=64, thumbnail_px=16, sample_size=100, max_hamming_bits=6),
    part_images=4,
)


def looks_of(**changes: float) -> Look:
    return Look(64, 48, 50.0, 0.1, np.zeros((16, 16), np.uint8), None)._replace(**changes)


@pytest.mark.parametrize(
    ("look", "reason"),
    [
        (looks_of(), None),
        (looks_of(width=31), "too_small"),
        (looks_of(width=1, height=1), "too_small"),
        (looks_of(width=32, height=32), None),
        (looks_of(width=144), None),
        (looks_of(width=145), "extreme_aspect"),
        (looks_of(width=40, height=121), "extreme_aspect"),
        (looks_of(grey_std=3.9), "near_constant"),
        (looks_of(dominant_share=0.96), "near_constant"),
        (looks_of(width=20, height=400, grey_std=0.0), "too_small"),  # the first reason counts
        (looks_of(nsfw_score=0.7), None),
        (looks_of(nsfw_score=0.71), "nsfw"),
        (looks_of(nsfw_score=1.0, width=20), "too_small"),
    ],
)
def test_judge_names_the_first_reason(look: Look, reason: str | None) -> None:
    assert judge(look, PARAMS) == reason


def test_look_at_measures() -> None:
    half = np.zeros((40, 600, 3), np.uint8)
    half[:, 300:] = 200
    look = look_at(half, 16)
    assert (look.width, look.height) == (600, 40)
    assert look.grey_std == pytest.approx(100.0)
    assert look.dominant_share == pytest.approx(0.5)
    assert look.thumbnail.shape == (16, 16)
    assert look.thumbnail[0, 0] == 0
    assert look.thumbnail[15, 15] == 200


@pytest.mark.parametrize("shape", [(1, 1, 3), (1, 3000, 3), (3000, 1, 3)])
def test_look_at_takes_any_shape(shape: tuple[int, int, int]) -> None:
    look = look_at(np.full(shape, 7, np.uint8), 16)
    assert (look.height, look.width) == shape[:2]
    assert (look.grey_std, look.dominant_share) == (0.0, 1.0)
    assert (look.thumbnail == 7).all()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("min_side_px", 0),
        ("max_aspect", 0.9),
        ("min_grey_std", -1.0),
        ("max_dominant_share", 1.1),
        ("part_images", 0),
        ("nsfw", {"path": "a", "sha256": "0" * 64, "max_score": 1.5}),
        ("nsfw", {"path": "a", "sha256": "short", "max_score": 0.5}),
        ("nsfw", True),
        ("faces", {"path": "a"}),
        ("pca_hash", {"num_bits": 64, "thumbnail_px": 16, "sample_size": 100, "max_hamming_bits": 17}),
    ],
)
def test_params_out_of_range_are_named(key: str, value: object) -> None:
    with pytest.raises(InputError, match=f"^filter.{key}"):
        validate(FilterParams, {**PARAMS.model_dump(), key: value}, where="filter")
