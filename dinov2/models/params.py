"""What a network is: parameters of the vision transformer and of the projection heads. Imports no torch."""

import re
from typing import Annotated, Literal, NamedTuple, cast

from pydantic import Field, model_validator

from dinov2.params import InputError, Params


class ViTParams(Params):
    """A vision transformer; field for field what decides the names and shapes of its state dict, and how it runs."""

    patch_size: Annotated[int, Field(gt=0)]
    """Side of a patch in pixels; image sides must be its multiples."""
    dim: Annotated[int, Field(gt=0)]
    """Width of a token."""
    depth: Annotated[int, Field(gt=0)]
    """Number of blocks."""
    heads: Annotated[int, Field(gt=0)]
    """Attention heads; must divide dim."""
    ffn: Literal["mlp", "swiglu"]
    """Feed-forward layer: MLP of width 4 dim (released S, B, L) or SwiGLU of two thirds of it (released g)."""
    num_registers: Annotated[int, Field(ge=0)]
    """Register tokens (arXiv 2309.16588); they get no position embedding."""
    layerscale: Annotated[float, Field(gt=0)]
    """Initial value of every LayerScale factor (1e-5 in the paper's training)."""
    drop_path: Annotated[float, Field(ge=0, lt=1)]
    """Share of the samples that skip a residual branch in training, the same in every block."""
    image_size_px: Annotated[int, Field(gt=0)]
    """Side of the images that the position embedding has a grid for; other sizes are interpolated."""
    interpolate_offset: Annotated[float, Field(ge=0)]
    """0.1: interpolate positions by scale factor (n + 0.1) / M, as released models without registers; 0: by size."""
    interpolate_antialias: bool
    """Whether interpolated positions are antialiased, as in released models with registers."""

    @model_validator(mode="after")
    def _check_divisions(self) -> "ViTParams":
        if self.dim % self.heads:
            raise ValueError(f"heads is {self.heads}, which does not divide dim {self.dim}; change one")
        if self.image_size_px % self.patch_size:
            raise ValueError(f"image_size_px is {self.image_size_px}, no multiple of patch_size {self.patch_size}")
        return self

    @property
    def grid(self) -> int:
        """Patches on a side of the position embedding's grid."""
        return self.image_size_px // self.patch_size

    def num_tokens(self, height_px: int, width_px: int) -> int:
        """Tokens of an image: CLS, registers and patches."""
        return 1 + self.num_registers + (height_px // self.patch_size) * (width_px // self.patch_size)


class HeadParams(Params):
    """A projection head: MLP, unit length, prototypes."""

    num_prototypes: Annotated[int, Field(gt=1)]
    """Outputs (K)."""
    hidden_dim: Annotated[int, Field(gt=0)]
    """Width of the MLP's hidden layers."""
    bottleneck_dim: Annotated[int, Field(gt=0)]
    """Width of the unit-length vector that meets the prototypes."""
    num_layers: Annotated[int, Field(gt=0)]
    """Linear layers of the MLP."""


class Size(NamedTuple):
    """What distinguishes the architectures of the paper."""

    dim: int
    depth: int
    heads: int
    ffn: Literal["mlp", "swiglu"]
    """Of the released weights."""


ARCHITECTURES = {
    "vit_small": Size(384, 12, 6, "mlp"),
    "vit_base": Size(768, 12, 12, "mlp"),
    "vit_large": Size(1024, 24, 16, "mlp"),
    "vit_giant2": Size(1536, 40, 24, "swiglu"),
}


def released_params(name: str) -> ViTParams:
    """The parameters of a backbone of the reference: `<size>[_mlp|_swiglu][_16][_reg4]`, the size from ARCHITECTURES.

    A size alone is the network of the released weights: patches of 14 px and positions for 518 px. `_reg4` adds four
    registers. `_16` (patches of 16 px) and a feed-forward layer other than the released one are what the reference
    trains but has released no weights of (`vit_large_swiglu` by vitl14.yaml, `vit_large_16` by vitl16_short.yaml);
    their positions are for 224 px. Raises InputError if there is no such backbone.
    """
    match = re.fullmatch(rf"({'|'.join(ARCHITECTURES)})(?:_(mlp|swiglu))?(_16)?(_reg4)?", name)
    if match is None:
        raise InputError(
            f"there is no architecture '{name}'; take one of {', '.join(ARCHITECTURES)}, if need be followed by _mlp "
            "or _swiglu (feed-forward layer), _16 (patches of 16 px), _reg4 (four registers), in this order"
        )
    base, ffn, patches_of_16, registers = match.groups()
    size = ARCHITECTURES[base]
    ffn = cast(Literal["mlp", "swiglu"], ffn or size.ffn)
    is_released = patches_of_16 is None and ffn == size.ffn
    return ViTParams(
        patch_size=16 if patches_of_16 else 14,
        dim=size.dim,
        depth=size.depth,
        heads=size.heads,
        ffn=ffn,
        num_registers=4 if registers else 0,
        layerscale=1e-5,
        drop_path=0.0,
        image_size_px=518 if is_released else 224,
        interpolate_offset=0.0 if registers else 0.1,
        interpolate_antialias=registers is not None,
    )
