"""The vision transformer of DINOv2 with the reference's state-dict names, so that released weights load strictly.

A sequence is [CLS | registers | patches]. Crops of several sizes pass in one packed forward: their tokens form one
matrix [all tokens, dim], every linear and norm runs on it at once, and only attention looks at which form a sample.
"""

from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from dinov2.models.attention import Backend, Shape, attention_weights
from dinov2.models.layers import Block, LayerScale, Subsets, needed_of
from dinov2.models.params import ViTParams
from dinov2.models.recompute import Recompute, run_block
from dinov2.params import InputError


class Features(NamedTuple):
    """Tokens after the final norm."""

    cls: Float[Tensor, "b d"]
    registers: Float[Tensor, "b r d"]
    patches: Float[Tensor, "b n d"]


def resize_positions(
    pos_embed: Float[Tensor, "1 tokens d"], height: int, width: int, *, offset: float, antialias: bool
) -> Float[Tensor, "1 new_tokens d"]:
    """Position embedding for `height` x `width` patches, interpolated from its square grid; CLS's stays as it is.

    Bicubic in fp32. With an `offset` above 0 sources are placed by the scale factor (n + offset) / M, as in released
    models without registers, else by the sizes n / M.
    """
    num_patches = pos_embed.shape[1] - 1
    side = round(num_patches**0.5)
    assert side * side == num_patches, f"the position embedding has {num_patches} places, which is no square"
    if height == width == side:
        return pos_embed
    grid = pos_embed[:, 1:].float().unflatten(1, (side, side)).permute(0, 3, 1, 2)
    if offset > 0:
        factors = ((height + offset) / side, (width + offset) / side)
        grid = F.interpolate(grid, scale_factor=factors, mode="bicubic", antialias=antialias)
    else:
        grid = F.interpolate(grid, size=(height, width), mode="bicubic", antialias=antialias)
    assert grid.shape[2:] == (height, width), f"interpolated to {tuple(grid.shape[2:])}, not {(height, width)}"
    patches = grid.permute(0, 2, 3, 1).flatten(1, 2).to(pos_embed.dtype)
    return torch.cat([pos_embed[:, :1], patches], dim=1)


class PatchEmbed(nn.Module):
    """Images cut into patches, each projected to a token."""

    def __init__(self, patch_size: int, dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, dim, kernel_size=patch_size, stride=patch_size)

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b n d"]:
        """Patches row by row."""
        return self.proj(images).flatten(2).transpose(1, 2)


class VisionTransformer(nn.Module):
    """The backbone. Images are normalised floats whose sides are multiples of the patch size."""

    def __init__(
        self, params: ViTParams, *, attention: Backend = "sdpa", recompute: Recompute = "none"
    ) -> None:
        super().__init__()
        self.params = params
        self.recompute: Recompute = recompute
        dim = params.dim
        self.patch_embed = PatchEmbed(params.patch_size, dim)
        self.cls_token = nn.Parameter(torch.empty(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.empty(1, 1 + params.grid**2, dim))
        if params.num_registers:
            self.register_tokens = nn.Parameter(torch.empty(1, params.num_registers, dim))
        self.mask_token = nn.Parameter(torch.empty(1, dim))
        self.blocks = nn.ModuleList(
            Block(dim, params.heads, params.ffn, params.layerscale, attention) for _ in range(params.depth)
        )
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.init_weights()

    def init_weights(self) -> None:
        """Fresh weights from torch's global generator; also what fills a network that was built on the meta device."""
        self.patch_embed.proj.reset_parameters()  # the reference keeps torch's default here
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        nn.init.normal_(self.cls_token, std=1e-6)
        if self.params.num_registers:
            nn.init.normal_(self.register_tokens, std=1e-6)
        nn.init.zeros_(self.mask_token)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.LayerNorm):
                module.reset_parameters()
            elif isinstance(module, LayerScale):
                nn.init.constant_(module.gamma, module.init_value)

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]:
        """CLS after the final norm."""
        return self.features(images).cls

    def features(self, images: Float[Tensor, "b 3 h w"], masks: Bool[Tensor, "b n"] | None = None) -> Features:
        """Tokens after the final norm; patches under `masks` are replaced by the mask token. No stochastic depth."""
        tokens = self._embed(images, masks)
        shape = (len(tokens), tokens.shape[1])
        x = tokens.flatten(0, 1)
        for block in self.blocks:
            x = block(x, [shape], None)
        return self._split(self.norm(x), shape)

    def tokens(
        self,
        crops: Sequence[Float[Tensor, "_ 3 _ _"]],
        masks: Sequence[Bool[Tensor, "_ _"] | None],
        rows: Int[Tensor, " m"],
        subsets: Subsets | None = None,
    ) -> Float[Tensor, "m d"]:
        """Some tokens of crops of several sizes, after the final norm, in one packed forward.

        `rows` (on the CPU) number all tokens sample by sample, size by size: samples * (1 + registers + patches). What
        only other tokens need is left out of the last block. `subsets` says which samples pass each branch.
        """
        embedded = [self._embed(images, mask) for images, mask in zip(crops, masks, strict=True)]
        shapes = [(len(part), part.shape[1]) for part in embedded]
        x = torch.cat([part.flatten(0, 1) for part in embedded])
        needed = needed_of(rows, subsets, len(x)).to(x.device)
        subsets = subsets.to(x.device) if subsets else None
        for number, block in enumerate(self.blocks):
            is_last = number == len(self.blocks) - 1
            arguments = (x, shapes, subsets.of_block(number) if subsets else None, needed if is_last else None)
            x = run_block(block, self.recompute, *arguments)
        return self.norm(x)

    def intermediate(
        self, images: Float[Tensor, "b 3 h w"], blocks: int | Sequence[int], norm: bool
    ) -> list[Features]:
        """Outputs of the last `blocks` blocks, or of the blocks with these numbers (from 0), in their order.

        After the final norm if `norm` (linear probes), else as the block leaves them (depth heads). No stochastic
        depth; blocks after the last one asked for do not run. Raises InputError if there is no such block.
        """
        depth = len(self.blocks)
        numbers = list(range(depth - blocks, depth)) if isinstance(blocks, int) else list(blocks)
        if not numbers or min(numbers) < 0 or max(numbers) >= depth:
            raise InputError(f"the network has {depth} blocks, from 0; {blocks} is asked of it: ask for fewer")
        tokens = self._embed(images, None)
        shapes = [(len(tokens), tokens.shape[1])]
        x, outputs = tokens.flatten(0, 1), {}
        for number, block in enumerate(self.blocks[: max(numbers) + 1]):
            x = block(x, shapes, None)
            if number in numbers:
                outputs[number] = self._split(self.norm(x) if norm else x, shapes[0])
        return [outputs[number] for number in numbers]

    def attention_maps(self, images: Float[Tensor, "b 3 h w"], block: int) -> Float[Tensor, "b heads t t"]:
        """How much each token (row: CLS, registers, patches) takes from each (column) in one block's attention.

        Rows sum to 1. `block` counts from 0, or from -1 for the last. Only this block's maps are ever in memory:
        4 b heads t^2 bytes in fp32. Raises InputError if there is no such block.
        """
        depth = len(self.blocks)
        if not -depth <= block < depth:
            raise InputError(f"the network has {depth} blocks, from 0; {block} is asked of it: ask for another")
        tokens = self._embed(images, None)
        shape = (len(tokens), tokens.shape[1])
        x = tokens.flatten(0, 1)
        for earlier in self.blocks[: block % depth]:
            x = earlier(x, [shape], None)
        asked = cast(Block, self.blocks[block])
        qkv = asked.attn.qkv(asked.norm1(x)).unflatten(-1, (3, self.params.heads, -1))
        return attention_weights(qkv, shape)

    def _embed(self, images: Tensor, masks: Tensor | None) -> Tensor:
        height, width = (side // self.params.patch_size for side in images.shape[2:])
        assert (height * self.params.patch_size, width * self.params.patch_size) == tuple(images.shape[2:]), (
            f"images of {tuple(images.shape[2:])} px are no multiple of patches of {self.params.patch_size} px"
        )
        x = self.patch_embed(images.to(self.patch_embed.proj.weight.dtype))
        if masks is not None:
            x = torch.where(masks.unsqueeze(-1), self.mask_token.to(x.dtype), x)
        positions = resize_positions(
            self.pos_embed,
            height,
            width,
            offset=self.params.interpolate_offset,
            antialias=self.params.interpolate_antialias,
        )
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1) + positions
        if not self.params.num_registers:
            return x
        return torch.cat([x[:, :1], self.register_tokens.expand(len(x), -1, -1), x[:, 1:]], dim=1)

    def _split(self, x: Tensor, shape: Shape) -> Features:
        x = x.unflatten(0, shape)
        first_patch = 1 + self.params.num_registers
        return Features(x[:, 0], x[:, 1:first_patch], x[:, first_patch:])
