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
        return self._replace(rows=self.rows[block])

    def to(self, device: torch.device) -> "Subsets":
        """The same on a device."""
        return self._replace(
            rows=self.rows.to(device, non_blocking=True), scale=self.scale.to(device, non_blocking=True)
        )


class Needed(NamedTuple):
    """The rows of the packed matrix that are wanted of the last block, and what its branches make of them."""

    rows: Int[Tensor, " m"]
    places: Int[Tensor, " m"]
    """Where each row stands among those that attention runs on; 0 if it does not."""
    attention_scale: Float[Tensor, "m 1"] | None
    """Factor of what attention adds to each row, 0 if its sample skips it; None: 1 for all."""
    ffn_scale: Float[Tensor, "m 1"] | None
    """The same of the feed-forward layer."""

    def to(self, device: torch.device) -> "Needed":
        """The same on a device."""
        scales = [part if part is None else part.to(device, non_blocking=True) for part in self[2:]]
        return Needed(self.rows.to(device, non_blocking=True), self.places.to(device, non_blocking=True), *scales)


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


def needed_of(rows: Int[Tensor, " m"], subsets: Subsets | None, num_tokens: int) -> Needed:
    """What the last block needs to give the `rows` of `num_tokens`, where it runs on `subsets`; all on the CPU."""
    if subsets is None:
        return Needed(rows, rows, None, None)
    attention, ffn = subsets.of_block(-1).rows
    places = torch.zeros(num_tokens, dtype=torch.long)
    scale = torch.zeros(2, num_tokens, 1)
    places[attention] = torch.arange(len(attention))
    scale[0, attention] = scale[1, ffn] = subsets.scale
    return Needed(rows, places[rows], scale[0, rows], scale[1, rows])


class Attention(nn.Module):
    """Multi-head self-attention within each sample."""

    def __init__(self, dim: int, heads: int, backend: Backend) -> None:
        super().__init__()
        self.heads = heads
        self.backend: Backend = backend
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(
        self, x: Float[Tensor, "tokens dim"], shapes: list[Shape], rows: Int[Tensor, " m"] | None = None
    ) -> Float[Tensor, "m dim"]:
        """`shapes` tells how the tokens divide into samples. With `rows`, only those are projected and given out."""
        qkv = self.qkv(x).unflatten(-1, (3, self.heads, -1))
        mixed = attend(qkv, shapes, self.backend)
        return self.proj(mixed if rows is None else mixed.index_select(0, rows))


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
        self, x: Float[Tensor, "tokens dim"], shapes: list[Shape], subsets: Subsets | None, needed: Needed | None = None
    ) -> Float[Tensor, "m dim"]:
        """All samples pass both branches, or only those in `subsets` (rows [2 kept]) do.

        With `needed`, attention looks at all tokens but only those rows are projected, fed forward and given out.
        """
        if needed is not None:
            return self._give_needed(x, shapes, subsets, needed)
        if subsets is None:
            x = x + self.ls1(self.attn(self.norm1(x), shapes))
            return x + self.ls2(self.mlp(self.norm2(x)))
        rows = subsets.rows[0]
        branch = self.ls1(self.attn(self.norm1(x.index_select(0, rows)), subsets.shapes))
        x = x.index_add(0, rows, (branch * subsets.scale).to(x.dtype))
        rows = subsets.rows[1]
        branch = self.ls2(self.mlp(self.norm2(x.index_select(0, rows))))
        return x.index_add(0, rows, (branch * subsets.scale).to(x.dtype))

    def _give_needed(self, x: Tensor, shapes: list[Shape], subsets: Subsets | None, needed: Needed) -> Tensor:
        given = x.index_select(0, needed.rows)
        if subsets is not None:
            x, shapes = x.index_select(0, subsets.rows[0]), subsets.shapes
        given = _added(given, self.ls1(self.attn(self.norm1(x), shapes, needed.places)), needed.attention_scale)
        return _added(given, self.ls2(self.mlp(self.norm2(given))), needed.ffn_scale)


def _added(x: Tensor, branch: Tensor, scale: Tensor | None) -> Tensor:
    return x + branch if scale is None else x + (branch * scale).to(x.dtype)
