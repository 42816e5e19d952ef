"""PCA hash: the signs of a thumbnail's principal components; images whose hashes (almost) agree are copies.

Paper section 3, "post-processing", names PCA-hash deduplication of the downloaded images without its details. Here:
grey thumbnails, each brought to zero mean and unit deviation, so that brightness and contrast don't matter; components
of their covariance, fitted on a sample; one bit a component. Near-copies that this misses are left to the dedup stage,
which compares descriptors; this one is made to be cheap and to be wrong about different photographs almost never.
"""

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
from jaxtyping import Float32, Float64, Int64, UInt8
from pydantic import Field, model_validator

from dinov2.params import InputError, Params

VERSION = 2  # of the file format and of the arithmetic
PRIOR_LENGTH = 0.5  # of the thumbnail's side: where the prior's correlation has fallen to 1/e
PRIOR_IMAGES_PER_PX = 4  # weight of the prior: a covariance of d pixels takes some multiple of d images
BLOCK_ROWS = 8192  # thumbnails hashed at once


class PcaHashParams(Params):
    """How images are hashed, and how near two hashes must be."""

    num_bits: Annotated[int, Field(ge=16, le=256)]
    """Principal components, one bit each."""
    thumbnail_px: Annotated[int, Field(ge=4, le=32)]
    """Side of the grey thumbnail."""
    sample_size: Annotated[int, Field(gt=0)]
    """Images the components are fitted on, evenly spaced in the order of the manifest."""
    max_hamming_bits: Annotated[int, Field(ge=0)]
    """Images whose hashes differ in at most so many bits are copies."""

    @model_validator(mode="after")
    def _fits(self) -> "PcaHashParams":
        if self.num_bits >= self.thumbnail_px**2:
            raise ValueError(f"num_bits must be below thumbnail_px squared, {self.thumbnail_px**2}")
        if self.max_hamming_bits * 4 > self.num_bits:
            raise ValueError(
                "max_hamming_bits must be at most a quarter of num_bits: unlike images differ in about half"
            )
        return self


@dataclass(frozen=True)
class PcaHash:
    """A fitted hash: the mean thumbnail and the components that are projected on."""

    mean: Float32[np.ndarray, " d"]
    components: Float32[np.ndarray, "bits d"]

    def hash(self, thumbnails: UInt8[np.ndarray, "n s s"]) -> UInt8[np.ndarray, "n bytes"]:
        """Hashes, eight bits a byte."""
        blocks = [
            np.packbits((standardise(block) - self.mean) @ self.components.T.astype(np.float64) > 0, axis=1)
            for block in np.split(thumbnails, range(BLOCK_ROWS, len(thumbnails), BLOCK_ROWS))
        ]
        return np.concatenate(blocks)

    def save(self, path: Path) -> None:
        """Write the hash with its version; equal hashes give equal bytes."""
        buffer = io.BytesIO()
        np.savez(buffer, version=np.int64(VERSION), mean=self.mean, components=self.components)
        path.write_bytes(buffer.getvalue())

    @classmethod
    def load(cls, path: Path) -> "PcaHash":
        """Read a saved hash; raises InputError if it is absent, damaged or of another version."""
        try:
            with np.load(path) as arrays:
                version, mean, components = int(arrays["version"]), arrays["mean"], arrays["components"]
        except (OSError, KeyError, ValueError, EOFError) as error:
            raise InputError(f"{path} is no readable PCA hash ({error}); run filter again") from error
        if version != VERSION:
            raise InputError(f"{path} is of version {version}, this code reads {VERSION}; run filter again")
        return cls(mean, components)


def standardise(thumbnails: UInt8[np.ndarray, "n s s"]) -> Float64[np.ndarray, "n d"]:
    """Rows of zero mean and unit deviation; a constant thumbnail becomes zeros."""
    rows = thumbnails.reshape(len(thumbnails), np.prod(thumbnails.shape[1:])).astype(np.float64)
    rows -= rows.mean(axis=1, keepdims=True)
    return rows / np.maximum(rows.std(axis=1, keepdims=True), 1e-6)


def sample_indices(count: int, sample_size: int) -> Int64[np.ndarray, " m"]:
    """Evenly spaced indices of `count` images: what the hash is fitted on."""
    return np.unique(np.linspace(0, count - 1, min(count, sample_size)).astype(np.int64))


def fit_pca_hash(sample: UInt8[np.ndarray, "n s s"], params: PcaHashParams) -> PcaHash:
    """Fit mean and components on the thumbnails of a sample.

    The covariance is shrunk towards that of photographs at large, exp(-distance). From few images alone, components
    would stand across the very images they were fitted on, and the signs of those would be noise.
    """
    size_px = params.thumbnail_px
    place = np.stack(np.meshgrid(range(size_px), range(size_px), indexing="ij"), axis=-1).reshape(-1, 2)
    distance = np.linalg.norm(place[:, None] - place[None], axis=-1)  # pixels
    prior = np.exp(-distance / (PRIOR_LENGTH * size_px))
    prior_images = PRIOR_IMAGES_PER_PX * size_px**2
    total, products = np.zeros(size_px**2), prior_images * prior
    for block in np.split(sample, range(BLOCK_ROWS, len(sample), BLOCK_ROWS)):
        rows = standardise(block)
        total += rows.sum(axis=0)
        products += rows.T @ rows
    count = len(sample) + prior_images
    mean = total / count
    # sum of (x - mean)(x - mean)^T over the sample, the prior's images having mean zero and weight of their own
    centred = products - np.outer(mean, total) - np.outer(total, mean) + len(sample) * np.outer(mean, mean)
    _, vectors = np.linalg.eigh(centred / count)  # ascending
    components = vectors[:, ::-1][:, : params.num_bits].T
    largest = np.take_along_axis(components, np.abs(components).argmax(axis=1)[:, None], axis=1)
    return PcaHash(mean.astype(np.float32), (components * np.sign(largest)).astype(np.float32))
