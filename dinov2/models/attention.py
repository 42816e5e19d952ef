"""The one choice of attention kernel, over samples of several lengths that lie in one matrix of tokens.

`sdpa` (PyTorch's own) runs once for each length and everywhere. `xformers` runs once in all, with a block-diagonal
mask, on CUDA only. Which one is a parameter; nothing is probed, and a kernel that can't run is an error.
"""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from dinov2.params import InputError

Backend = Literal["sdpa", "xformers", "varlen"]

Shape = tuple[int, int]
"""(samples, tokens of each): a stretch of a packed matrix of tokens, whose stretches follow one another."""


def attend(
    qkv: Float[Tensor, "tokens 3 heads head_dim"], shapes: Sequence[Shape], backend: Backend
) -> Float[Tensor, "tokens heads*head_dim"]:
    """Attention of every sample's tokens to one another, softmax(q k' / sqrt(head_dim)) v.

    `shapes` tells how the tokens divide into samples. Raises InputError if `backend` can't run here.
    """
    if backend == "xformers":
        return _attend_xformers(qkv, shapes)
    return _attend_sdpa(qkv, shapes)


def _attend_sdpa(qkv: Tensor, shapes: Sequence[Shape]) -> Tensor:
    outputs = []
    for (samples, length), part in zip(shapes, qkv.split([n * t for n, t in shapes]), strict=True):
        q, k, v = part.unflatten(0, (samples, length)).permute(2, 0, 3, 1, 4).unbind(0)  # each [n heads t head_dim]
        outputs.append(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(0, 1).flatten(1))
    return torch.cat(outputs)


def _attend_xformers(qkv: Tensor, shapes: Sequence[Shape]) -> Tensor:
    fmha: Any = _import_xformers(qkv.device)
    lengths = [length for samples, length in shapes for _ in range(samples)]
    bias = fmha.BlockDiagonalMask.from_seqlens(lengths)
    q, k, v = qkv.unsqueeze(0).unbind(2)  # each [1 tokens heads head_dim]
    return fmha.memory_efficient_attention(q, k, v, attn_bias=bias).squeeze(0).flatten(1)


def _import_xformers(device: torch.device) -> Any:
    if device.type != "cuda":
        raise InputError(f"attention is 'xformers', which needs a GPU, but runs on {device}; set it to 'sdpa'")
    try:
        from xformers.ops import fmha  # pyright: ignore[reportMissingImports]  # an extra, heavy, CUDA only
    except ImportError as error:
        raise InputError(
            "attention is 'xformers', which is not installed; install the gpu extra or set 'sdpa'"
        ) from error
    return fmha
