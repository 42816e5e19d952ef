"""Whitened thumbnails: copies stay together, other photographs apart."""

import io

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from dinov2.curation.embed.embedder import unit
from dinov2.curation.embed.thumbnail import Thumbnails, Whitening, added, fit, moments, thumbnail, whiten
from dinov2.curation.params import ThumbnailParams
from dinov2.params import InputError

PARAMS = ThumbnailParams(kind="thumbnail", size_px=16, dims=64, shrinkage=0.1)


def photographs(num: int) -> list[Image.Image]:
    """Random pictures with the spectrum of photographs: large shapes are strong, details weak."""
    rng = np.random.default_rng(0)
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(120), np.fft.fftfreq(160), indexing="ij"))
    pictures = []
    for _ in range(num):
        noise = rng.standard_normal((3, 120, 160))
        shapes = np.fft.ifft2(np.fft.fft2(noise) / np.maximum(frequency, 1 / 160) ** 1.3).real
        pixels = 128 + 45 * shapes / shapes.std()
        pictures.append(Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8).transpose(1, 2, 0)))
    return pictures


def thumbnails(images: list[Image.Image]) -> NDArray[np.float32]:
    encoder = Thumbnails(PARAMS)
    return encoder.encode([encoder.prepare(np.asarray(image)) for image in images])


def descriptors(whitening: Whitening, images: list[Image.Image]) -> NDArray[np.float32]:
    rows, can_be_unit = unit(whiten(thumbnails(images), whitening))
    assert can_be_unit.all()
    return rows


def jpeg(image: Image.Image, quality: int) -> Image.Image:
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=quality)
    return Image.open(stream).convert("RGB")


@pytest.fixture(scope="module")
def originals() -> list[Image.Image]:
    return photographs(150)


@pytest.fixture(scope="module")
def whitening(originals: list[Image.Image]) -> Whitening:
    rows = thumbnails(originals)
    return fit(added([moments(rows[90:])], moments(rows[:90])), PARAMS)


def test_copies_are_close(whitening: Whitening, originals: list[Image.Image]) -> None:
    original = descriptors(whitening, originals)
    makers = {
        "re-encoded": (lambda image: jpeg(image, 30), 0.95),
        "half size": (lambda image: image.resize((80, 60)), 0.95),
        "cropped": (lambda image: image.crop((3, 2, 157, 118)), 0.8),
    }
    for name, (make, least) in makers.items():
        cosine = (original * descriptors(whitening, [make(image) for image in originals])).sum(axis=1)
        assert cosine.min() > least, name


def test_other_photographs_are_far(whitening: Whitening, originals: list[Image.Image]) -> None:
    original = descriptors(whitening, originals)
    cosine = (original @ original.T)[np.triu_indices(len(original), 1)]
    assert cosine.max() < 0.7


def test_descriptors_are_of_unit_length(whitening: Whitening, originals: list[Image.Image]) -> None:
    flat = Image.new("RGB", (50, 40), (10, 200, 30))
    lengths = np.linalg.norm(descriptors(whitening, [*originals[:5], flat]), axis=1)
    np.testing.assert_allclose(lengths, 1, atol=1e-5)


def test_fit_does_not_depend_on_how_the_pool_is_cut(whitening: Whitening, originals: list[Image.Image]) -> None:
    whole = fit(moments(thumbnails(originals)), PARAMS)
    cosine = (descriptors(whitening, originals[:20]) * descriptors(whole, originals[:20])).sum(axis=1)
    np.testing.assert_allclose(cosine, 1, atol=1e-5)


def test_thumbnail_averages_equal_areas() -> None:
    image = np.zeros((3, 3, 3), np.uint8)
    image[:, 2] = 90  # of two columns the right one covers pixel 2 and half of pixel 1
    cells = thumbnail(image, 2).reshape(2, 2, 3)
    np.testing.assert_allclose(cells, np.broadcast_to(np.array([-1, 1])[None, :, None], (2, 2, 3)), atol=1e-6)


@pytest.mark.parametrize("num", [0, 1])
def test_fit_on_one_image_is_refused(num: int) -> None:
    with pytest.raises(InputError, match=f"the pool has {num} images"):
        fit(moments(np.zeros((num, 768), np.float32)), PARAMS)


def test_more_dims_than_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match="dims is 13, above the 12"):
        ThumbnailParams(kind="thumbnail", size_px=2, dims=13, shrinkage=0.1)
