"""Params of what embeds images, clusters them and retrieves. Imports no torch."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from dinov2.params import Params


class ThumbnailParams(Params):
    """Copy descriptors from whitened thumbnails; need no weights."""

    kind: Literal["thumbnail"]
    size_px: Annotated[int, Field(ge=2, le=64)]
    """Side of the thumbnail."""
    dims: Annotated[int, Field(gt=0)]
    """Principal components that are kept."""
    shrinkage: Annotated[float, Field(gt=0)]
    """Damping of the whitening: this share of the mean variance is added to each; large: no whitening."""

    @model_validator(mode="after")
    def _check_dims(self) -> Self:
        if self.dims > 3 * self.size_px**2:
            raise ValueError(f"dims is {self.dims}, above the {3 * self.size_px**2} numbers of a thumbnail; lower it")
        return self


class SSCDParams(Params):
    """Copy descriptors from a self-supervised copy detection network (SSCD, arXiv 2202.10261), used as published."""

    kind: Literal["sscd"]
    path: str
    """TorchScript (.pt) or ONNX (.onnx) file, or `package:<distribution>/<file>`: one that a package carries."""
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    """Of that file: it decides the result, so it is part of the params."""
    resize: Literal["short_side", "square"]
    """Published: the shorter side to 288; or to a square of 320, all in one batch."""
    size_px: Annotated[int, Field(ge=32)]
    """That side."""
    input: Literal["float_nchw", "uint8_nhwc"]
    """What the file takes: normalised floats, as released, or bytes that it normalises itself."""


Precision = Literal["fp32", "bf16", "fp16"]

CopyParams = Annotated[ThumbnailParams | SSCDParams, Field(discriminator="kind")]


class OursParams(Params):
    """Semantic descriptors from a backbone of this project: what `bootstrap` made, or another in its place."""

    kind: Literal["ours"]
    precision: Literal["fp32", "bf16"]
    """Arithmetic of the backbone."""


class NetworkParams(Params):
    """Descriptors from a network in a file: where it is and what it takes."""

    kind: Literal["torchscript", "onnx"]
    """Format of the file."""
    path: str
    """The file, or `package:<distribution>/<file>`: one that an installed package carries."""
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    """Of that file: it decides the result, so it is part of the params."""
    resize: Literal["short_side", "square"]
    """The shorter side to `size_px`, the aspect kept; or a square of that side. Always antialiased."""
    size_px: Annotated[int, Field(ge=8)]
    """That side."""
    interpolation: Literal["bilinear", "bicubic"]
    """Of the resizing."""
    crop_px: Annotated[int, Field(ge=8)] | None
    """Side of the middle square that is then cut out; null: nothing is cut off."""
    input: Literal["float_nchw", "uint8_nhwc"]
    """What the file takes: normalised floats, or bytes that it normalises itself."""
    mean: tuple[float, float, float] | None
    """Subtracted from RGB values in 0..1; null for bytes."""
    std: tuple[float, float, float] | None
    """What the difference is divided by; null for bytes."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if {self.mean is None, self.std is None} != {self.input == "uint8_nhwc"}:
            raise ValueError(f"mean and std belong to float_nchw and are null for uint8_nhwc; input is {self.input}")
        if self.std is not None and min(self.std) <= 0:
            raise ValueError(f"std is {self.std}; give numbers above 0")
        if self.crop_px is not None and self.crop_px > self.size_px:
            raise ValueError(f"crop_px is {self.crop_px}, above the size_px of {self.size_px}; lower it")
        return self


SemanticParams = Annotated[OursParams | NetworkParams, Field(discriminator="kind")]


class ClusterParams(Params):
    """Spherical k-means of the pool (paper: 100,000 clusters)."""

    seed: Annotated[int, Field(ge=0)]
    """Of its first centroids."""
    num_clusters: Annotated[int, Field(gt=0)]
    """Clusters of the pool; a pool of fewer images has one an image."""
    num_iterations: Annotated[int, Field(gt=0)]
    """Updates of the centroids at most; it ends when nothing moves any more."""
    precision: Precision
    """Of the first products; close calls are decided exactly, so that it changes speed only. bf16 and fp16 need a
    processor that has them."""


class SeededParams(Params):
    """Seeds choose pool images (paper section 3, appendix A.4). A seed's label is its source."""

    kind: Literal["seeds"]
    sample_based_from: Annotated[int, Field(ge=0)]
    """Sources with at least this many seeds retrieve by sample, others by cluster (paper: 1,000,000)."""
    num_neighbors: Annotated[int, Field(gt=0)]
    """N: pool images a seed in sample-based retrieval (paper: 4)."""
    num_from_cluster: Annotated[int, Field(gt=0)]
    """M: pool images a seed in cluster-based retrieval."""
    min_cosine: Annotated[float, Field(ge=-1, le=1)]
    """Pool images below this to a seed are not taken."""
    max_per_source: Annotated[int, Field(gt=0)] | None
    """Quota: most pool images that a source may bring in, the most similar; null: no limit."""


class BalancedParams(Params):
    """An even sample of the pool by a hierarchy of clusters; needs no seeds (arXiv 2405.15613)."""

    kind: Literal["balanced"]
    coarser: list[Annotated[int, Field(gt=0)]]
    """Clusters of clusters: numbers of the levels above `clusters.num_clusters`, each smaller than the one before."""
    num_resamplings: Annotated[int, Field(ge=0)]
    """How often a level is clustered again, from a few points of each of its clusters."""
    num_resampled: Annotated[int, Field(gt=0)]
    """Those few: the points nearest each centroid."""
    num_images: Annotated[int, Field(gt=0)]
    """Pool images to take."""
    pick: Literal["closest", "random"]
    """Which of a cluster: the nearest to its centroid, or any, by the seed of the clusters."""


ChooseParams = Annotated[SeededParams | BalancedParams, Field(discriminator="kind")]


class InspectParams(Params):
    """What the inspection page shows."""

    num_seeds: Annotated[int, Field(ge=0)]
    """Seeds on the page, spread evenly over all."""
    num_neighbors: Annotated[int, Field(gt=0)]
    """Nearest pool images beside each."""
    num_pairs: Annotated[int, Field(gt=0)]
    """Pairs on either side of each threshold of dedup, at even steps of cosine."""
    num_removed: Annotated[int, Field(ge=0)]
    """Removed images of each reason."""
    num_sampled: Annotated[int, Field(gt=0)]
    """Seeds, and pool images, whose nearest neighbours the histograms count."""
    max_rows: Annotated[int, Field(gt=0)]
    """Descriptors of a set that are compared; of more, whole blocks are drawn until there are so many."""
    seed: Annotated[int, Field(ge=0)]
    """Of everything that is drawn."""
    thumbnail_px: Annotated[int, Field(ge=16, le=512)]
    """Longer side of a thumbnail."""
