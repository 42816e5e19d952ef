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
    """Copy descriptors from a self-supervised copy detection network (SSCD, arXiv 2202.10261)."""

    kind: Literal["sscd"]
    path: str
    """TorchScript (.pt) or ONNX (.onnx) file."""
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    """Of that file: it decides the result, so it is part of the params."""
    resize: Literal["short_side", "square"]
    """Published: the shorter side to 288, images one by one; or to a square of 320, in batches."""
    size_px: Annotated[int, Field(ge=32)]
    """That side."""


CopyParams = Annotated[ThumbnailParams | SSCDParams, Field(discriminator="kind")]


class ClusterParams(Params):
    """Spherical k-means of the pool (paper: 100,000 clusters)."""

    seed: Annotated[int, Field(ge=0)]
    """Of its first centroids."""
    num_clusters: Annotated[int, Field(gt=0)]
    """Clusters of the pool; a pool of fewer images has one an image."""
    num_iterations: Annotated[int, Field(gt=0)]
    """Updates of the centroids."""


class RetrievalParams(Params):
    """How seeds choose pool images."""

    sample_based_from: Annotated[int, Field(ge=0)]
    """Labels with at least this many seeds retrieve by sample, others by cluster (paper: 1,000,000 a source)."""
    num_neighbors: Annotated[int, Field(gt=0)]
    """N: pool images a seed in sample-based retrieval (paper: 4)."""
    num_from_cluster: Annotated[int, Field(gt=0)]
    """M: pool images a seed in cluster-based retrieval."""
    min_cosine: Annotated[float, Field(ge=-1, le=1)]
    """Pool images below this to a seed are not taken."""
    max_per_label: Annotated[int, Field(gt=0)] | None
    """Most similar images that a label may bring in; null: no limit."""


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
