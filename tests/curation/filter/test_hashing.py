"""PCA hash: copies found whatever their size, code and brightness; different images kept apart."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from pydantic import ValidationError

from dinov2.curation.filter import hashing
from dinov2.curation.filter.hashing import PcaHash, PcaHashParams, fit_pca_hash, sample_indices
from dinov2.params import InputError

PARAMS = PcaHashParams(num_bits=64, thumbnail_px=16, sample_size=500, max_hamming_bits=4)


def photographs(count: int, seed: int) -> NDArray[np.uint8]:
    """Thumbnails with the spectrum of photographs (amplitude falls as 1/frequency)."""
    generator = np.random.default_rng(seed)
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(16), np.fft.fftfreq(16)))
    spectrum = np.fft.fft2(generator.standard_normal((count, 16, 16))) / np.maximum(frequency, 1 / 16)
    images = np.fft.ifft2(spectrum).real
    images /= images.std(axis=(1, 2), keepdims=True)
    return np.clip(128 + 40 * images, 0, 255).astype(np.uint8)


def distances(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> NDArray[np.int64]:
    return np.unpackbits(a ^ b, axis=1).sum(axis=1).astype(np.int64)


@pytest.mark.parametrize("count", [3, 400])
def test_copies_are_near_and_others_far(count: int) -> None:
    images = photographs(count, 0)
    noise = np.random.default_rng(1).normal(0, 1.0, images.shape)  # what re-encoding does to a thumbnail
    copies = np.clip(images * 0.8 + 20 + noise, 0, 255).astype(np.uint8)
    fitted = fit_pca_hash(images, PARAMS)
    hashes = fitted.hash(images)
    assert hashes.shape == (count, 8)
    assert np.median(distances(hashes, fitted.hash(copies))) <= 4
    pairs = distances(np.repeat(hashes, count, axis=0), np.tile(hashes, (count, 1)))[~np.eye(count, dtype=bool).ravel()]
    assert pairs.min() > 4
    assert 24 < pairs.mean() < 40


def test_hash_without_images_is_fitted_to_photographs_at_large() -> None:
    fitted = fit_pca_hash(photographs(0, 0), PARAMS)
    assert fitted.components.shape == (64, 256)
    np.testing.assert_allclose(fitted.components @ fitted.components.T, np.eye(64), atol=1e-5)


def test_fit_in_blocks_is_the_fit_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    images = photographs(50, 0)
    whole = fit_pca_hash(images, PARAMS)
    monkeypatch.setattr(hashing, "BLOCK_ROWS", 7)
    np.testing.assert_allclose(fit_pca_hash(images, PARAMS).components, whole.components, atol=1e-4)
    rows = hashing.standardise(images)  # and that of the formula: covariance of the sample, with the prior's share
    prior = hashing.PRIOR_IMAGES_PER_PX * 256
    np.testing.assert_allclose(whole.mean, rows.sum(axis=0) / (50 + prior), atol=1e-6)


def test_sample_is_spread_evenly() -> None:
    assert sample_indices(10, 4).tolist() == [0, 3, 6, 9]
    assert sample_indices(3, 4).tolist() == [0, 1, 2]
    assert sample_indices(0, 4).tolist() == []


def test_saved_hash_is_read_back_and_its_bytes_are_fixed(tmp_path: Path) -> None:
    images = photographs(50, 0)
    for name in ("a.npz", "b.npz"):
        fit_pca_hash(images, PARAMS).save(tmp_path / name)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    np.testing.assert_array_equal(
        PcaHash.load(tmp_path / "a.npz").hash(images), fit_pca_hash(images, PARAMS).hash(images)
    )


def test_unreadable_hash_is_an_input_error(tmp_path: Path) -> None:
    (tmp_path / "broken.npz").write_bytes(b"not a zip")
    np.savez(tmp_path / "old.npz", version=0, mean=np.zeros(1), components=np.zeros(1))
    for name in ("absent.npz", "broken.npz", "old.npz"):
        with pytest.raises(InputError, match=name):
            PcaHash.load(tmp_path / name)


def test_params_that_cannot_work_are_refused() -> None:
    for changes in ({"num_bits": 256}, {"max_hamming_bits": 20}):
        with pytest.raises(ValidationError):
            PcaHashParams(**{**PARAMS.model_dump(), **changes})
