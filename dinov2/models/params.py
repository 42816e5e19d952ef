"""What a network is: parameters of the vision transformer and of the projection heads. Imports no torch."""

from typing import Annotated, Literal, NamedTuple

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


ARCHITECTURES = {
    "vit_small": Size(384, 12, 6, "mlp"),
    "vit_base": Size(768, 12, 12, "mlp"),
    "vit_large": Size(1024, 24, 16, "mlp"),
    "vit_giant2": Size(1536, 40, 24, "swiglu"),
}


def released_params(name: str) -> ViTParams:
    """The parameters of a released DINOv2 backbone: a key of ARCHITECTURES, with `_reg4` for four registers.

    Raises InputError if there is no such backbone.
    """
    base, registers = (name.removesuffix("_reg4"), 4) if name.endswith("_reg4") else (name, 0)
    if base not in ARCHITECTURES:
        known = ", ".join([*ARCHITECTURES, *(f"{known}_reg4" for known in ARCHITECTURES)])
        raise InputError(f"there is no released architecture '{name}'; take one of {known}")
    size = ARCHITECTURES[base]
    return ViTParams(
        patch_size=14,
        dim=size.dim,
        depth=size.depth,
        heads=size.heads,
        ffn=size.ffn,
        num_registers=registers,
        layerscale=1e-5,
        drop_path=0.0,
        image_size_px=518,
        interpolate_offset=0.0 if registers else 0.1,
        interpolate_antialias=registers > 0,
    )
