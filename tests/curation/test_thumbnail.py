"""Whitened thumbnails: copies stay together, other photographs apart."""

import io

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from dinov2.curation.params import ThumbnailParams
from dinov2.curation.thumbnail import Thumbnails, thumbnail
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


def descriptors(encoder: Thumbnails, images: list[Image.Image]) -> NDArray[np.float32]:
    return encoder.finish(encoder.encode([encoder.prepare(np.asarray(image)) for image in images]))


def jpeg(image: Image.Image, quality: int) -> Image.Image:
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=quality)
    return Image.open(stream).convert("RGB")


@pytest.fixture(scope="module")
def originals() -> list[Image.Image]:
    return photographs(150)


@pytest.fixture(scope="module")
def encoder(originals: list[Image.Image]) -> Thumbnails:
    fitted = Thumbnails(PARAMS)
    thumbnails = np.stack([fitted.prepare(np.asarray(image)) for image in originals])
    fitted.fit([thumbnails[:90], thumbnails[90:]])
    return fitted


def test_copies_are_close(encoder: Thumbnails, originals: list[Image.Image]) -> None:
    original = descriptors(encoder, originals)
    makers = {
        "re-encoded": (lambda image: jpeg(image, 30), 0.95),
        "half size": (lambda image: image.resize((80, 60)), 0.95),
        "cropped": (lambda image: image.crop((3, 2, 157, 118)), 0.8),
    }
    for name, (make, least) in makers.items():
        cosine = (original * descriptors(encoder, [make(image) for image in originals])).sum(axis=1)
        assert cosine.min() > least, name


def test_other_photographs_are_far(encoder: Thumbnails, originals: list[Image.Image]) -> None:
    original = descriptors(encoder, originals)
    cosine = (original @ original.T)[np.triu_indices(len(original), 1)]
    assert cosine.max() < 0.7


def test_descriptors_are_of_unit_length(encoder: Thumbnails, originals: list[Image.Image]) -> None:
    flat = Image.new("RGB", (50, 40), (10, 200, 30))
    lengths = np.linalg.norm(descriptors(encoder, [*originals[:5], flat]), axis=1)
    np.testing.assert_allclose(lengths, 1, atol=1e-5)


def test_fit_does_not_depend_on_how_the_pool_is_cut(encoder: Thumbnails, originals: list[Image.Image]) -> None:
    whole = Thumbnails(PARAMS)
    whole.fit([np.stack([whole.prepare(np.asarray(image)) for image in originals])])
    cosine = (descriptors(encoder, originals[:20]) * descriptors(whole, originals[:20])).sum(axis=1)
    np.testing.assert_allclose(cosine, 1, atol=1e-5)


def test_thumbnail_averages_equal_areas() -> None:
    image = np.zeros((3, 3, 3), np.uint8)
    image[:, 2] = 90  # of two columns the right one covers pixel 2 and half of pixel 1
    cells = thumbnail(image, 2).reshape(2, 2, 3)
    np.testing.assert_allclose(cells, np.broadcast_to(np.array([-1, 1])[None, :, None], (2, 2, 3)), atol=1e-6)


def test_fit_on_one_image_is_refused() -> None:
    encoder = Thumbnails(PARAMS)
    with pytest.raises(InputError, match="the pool has 1 images"):
        encoder.fit([np.zeros((1, 768), np.float32)])


def test_more_dims_than_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match="dims is 13, above the 12"):
        ThumbnailParams(kind="thumbnail", size_px=2, dims=13, shrinkage=0.1)
