"""The parts of a transformer block, each over one packed matrix of tokens of several crop sizes.

Stochastic depth follows the paper (section 5): a branch runs on a random subset of the samples only, and what it adds
is scaled by samples / subset, so that skipping saves time as well.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from dinov2.models.attention import Backend, Shape, attend


class Subsets(NamedTuple):
    """The samples that the residual branches run on: of one block, or of all (then rows begin with "depth 2")."""

    rows: Int[Tensor, "*blocks kept"]
    """Rows of the packed matrix, by block and by branch (attention, feed-forward)."""
    scale: Float[Tensor, "kept 1"]
    """Factor of what a branch adds to each of those rows."""
    shapes: list[Shape]
    """How those rows divide into samples."""

    def of_block(self, block: int) -> "Subsets":
        """The subsets of one block's two branches, rows [2 kept]."""
        return Subsets(self.rows[block], self.scale, self.shapes)

    def to(self, device: torch.device) -> "Subsets":
        """The same on a device."""
        return Subsets(self.rows.to(device, non_blocking=True), self.scale.to(device, non_blocking=True), self.shapes)


def draw_subsets(
    shapes: Sequence[Shape], num_images: int, depth: int, drop_path: float, generators: Sequence[torch.Generator]
) -> Subsets:
    """Random subsets of max(floor(n (1 - drop_path)), 1) samples for both branches of `depth` blocks, on the CPU.

    `shapes` are the packed crop sizes; their samples are crop-major, (crops * images). The images divide into as many
    equal groups as there are generators; n is a group's crops of one size, drawn by the group's own generator, so that
    its draw is the same whichever process holds it.
    """
    num_groups = len(generators)
    assert num_images % num_groups == 0, f"{num_images} images do not divide into {num_groups} groups"
    size = num_images // num_groups
    rows, scales, kept_shapes, offset = [], [], [], 0
    for samples, length in shapes:
        assert samples % num_images == 0, f"{samples} samples are no whole number of crops of {num_images} images"
        num_in_group = samples // num_groups
        kept = max(int(num_in_group * (1 - drop_path)), 1)
        members = torch.arange(samples).view(-1, num_groups, size).transpose(0, 1).flatten(1)  # [groups num_in_group]
        chosen = [
            member[torch.rand(depth, 2, num_in_group, generator=generator).argsort(dim=-1)[..., :kept]]
            for member, generator in zip(members, generators, strict=True)
        ]
        numbers = torch.cat(chosen, dim=2)  # [depth 2 groups*kept]
        rows.append((numbers[..., None] * length + torch.arange(length)).flatten(2) + offset)
        scales.append(torch.full((num_groups * kept * length, 1), num_in_group / kept))
        kept_shapes.append((num_groups * kept, length))
        offset += samples * length
    return Subsets(torch.cat(rows, dim=2), torch.cat(scales), kept_shapes)


class Attention(nn.Module):
    """Multi-head self-attention within each sample."""

    def __init__(self, dim: int, heads: int, backend: Backend) -> None:
        super().__init__()
        self.heads = heads
        self.backend: Backend = backend
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Float[Tensor, "tokens dim"], shapes: list[Shape]) -> Float[Tensor, "tokens dim"]:
        """`shapes` tells how the tokens divide into samples."""
        qkv = self.qkv(x).unflatten(-1, (3, self.heads, -1))
        return self.proj(attend(qkv, shapes, self.backend))


class Mlp(nn.Module):
    """Two linear layers with a GELU between them."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, 4 * dim)
        self.fc2 = nn.Linear(4 * dim, dim)

    def forward(self, x: Float[Tensor, "*n dim"]) -> Float[Tensor, "*n dim"]:
        """Each token by itself."""
        return self.fc2(F.gelu(self.fc1(x)))


class SwiGLU(nn.Module):
    """A gated linear unit with SiLU, both inner projections in one matrix (arXiv 2002.05202)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        hidden_dim = (int(4 * dim * 2 / 3) + 7) // 8 * 8  # as many weights as Mlp, a multiple of 8: 1536 -> 4096
        self.w12 = nn.Linear(dim, 2 * hidden_dim)
        self.w3 = nn.Linear(hidden_dim, dim)

    def forward(self, x: Float[Tensor, "*n dim"]) -> Float[Tensor, "*n dim"]:
        """Each token by itself."""
        gate, value = self.w12(x).chunk(2, dim=-1)
        return self.w3(F.silu(gate) * value)


class LayerScale(nn.Module):
    """One trainable factor a channel (arXiv 2103.17239)."""

    def __init__(self, dim: int, init_value: float) -> None:
        super().__init__()
        self.init_value = init_value
        self.gamma = nn.Parameter(torch.full((dim,), init_value))

    def forward(self, x: Float[Tensor, "*n dim"]) -> Float[Tensor, "*n dim"]:
        """The scaled channels."""
        return x * self.gamma


class Block(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, dim: int, heads: int, ffn: str, layerscale: float, backend: Backend) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = Attention(dim, heads, backend)
        self.ls1 = LayerScale(dim, layerscale)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = Mlp(dim) if ffn == "mlp" else SwiGLU(dim)
        self.ls2 = LayerScale(dim, layerscale)

    def forward(
        self, x: Float[Tensor, "tokens dim"], shapes: list[Shape], subsets: Subsets | None
    ) -> Float[Tensor, "tokens dim"]:
        """All samples pass both branches, or only those in `subsets` (rows [2 kept]) do."""
        if subsets is None:
            x = x + self.ls1(self.attn(self.norm1(x), shapes))
            return x + self.ls2(self.mlp(self.norm2(x)))
        rows = subsets.rows[0]
        branch = self.ls1(self.attn(self.norm1(x.index_select(0, rows)), subsets.shapes))
        x = x.index_add(0, rows, (branch * subsets.scale).to(x.dtype))
        rows = subsets.rows[1]
        branch = self.ls2(self.mlp(self.norm2(x.index_select(0, rows))))
        return x.index_add(0, rows, (branch * subsets.scale).to(x.dtype))
