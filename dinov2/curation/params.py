"""Params of what embeds images. Imports no torch."""

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
