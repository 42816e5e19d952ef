"""The one choice of attention kernel, over samples of several lengths that lie in one matrix of tokens.

`sdpa` (PyTorch's own) runs once for each length, everywhere. `varlen` (PyTorch's own too) and `xformers` run once in
all, on CUDA only. Which one is a parameter; nothing is probed, and a kernel that can't run here is an error.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from dinov2.params import InputError

Backend = Literal["sdpa", "xformers", "varlen"]

Shape = tuple[int, int]
"""(samples, tokens of each): a stretch of a packed matrix of tokens, whose stretches follow one another."""

HALF = (torch.bfloat16, torch.float16)
LONGEST_EXPLICIT = 512
"""Tokens up to which half precision on a CPU is faster by the formula than by PyTorch's flash kernel, see below."""


def attend(
    qkv: Float[Tensor, "tokens 3 heads head_dim"], shapes: Sequence[Shape], backend: Backend
) -> Float[Tensor, "tokens heads*head_dim"]:
    """Attention of every sample's tokens to one another, softmax(q k' / sqrt(head_dim)) v.

    `shapes` tells how the tokens divide into samples. Raises InputError if `backend` can't run here.
    """
    if backend == "xformers":
        return _attend_xformers(qkv, tuple(shapes))
    if backend == "varlen":
        return _attend_varlen(qkv, tuple(shapes))
    if len(shapes) == 1:
        return _attend_sdpa(qkv, shapes[0])
    parts = qkv.split([samples * length for samples, length in shapes])
    return torch.cat([_attend_sdpa(part, shape) for shape, part in zip(shapes, parts, strict=True)])


def attention_weights(
    qkv: Float[Tensor, "tokens 3 heads head_dim"], shape: Shape
) -> Float[Tensor, "samples heads length length"]:
    """softmax(q k' / sqrt(head_dim)): how much each token (row) takes from each (column); rows sum to 1."""
    q, k, _ = _divide(qkv, shape)
    return _weights(q, k)


@torch.compiler.assume_constant_result
def cumulative_lengths(shapes: tuple[Shape, ...], device: torch.device) -> Int[Tensor, " starts"]:
    """Where each sample's tokens begin, and at last where they end: the same tensor for the same arguments."""
    return _cumulative_lengths(shapes, device)


def _divide(qkv: Tensor, shape: Shape) -> tuple[Tensor, ...]:
    return qkv.unflatten(0, shape).permute(2, 0, 3, 1, 4).unbind(0)  # q, k, v, each [n heads t head_dim]


def _weights(q: Tensor, k: Tensor) -> Tensor:
    return (q * q.shape[-1] ** -0.5 @ k.transpose(-1, -2)).softmax(-1)


def _attend_sdpa(qkv: Tensor, shape: Shape) -> Tensor:
    q, k, v = _divide(qkv, shape)
    if qkv.device.type == "cpu" and qkv.dtype in HALF and shape[1] <= LONGEST_EXPLICIT:
        # The backward pass of PyTorch's CPU kernel (2.13) is 2 (257 tokens) to 5 times (50) slower in bfloat16.
        output = _weights(q, k) @ v
    else:
        output = F.scaled_dot_product_attention(q, k, v)
    return output.transpose(1, 2).flatten(2).flatten(0, 1)


def _attend_varlen(qkv: Tensor, shapes: tuple[Shape, ...]) -> Tensor:
    _require_cuda("varlen", qkv.device)
    if qkv.dtype not in HALF:
        raise InputError(f"attention is 'varlen', which can't do {qkv.dtype}; set precision to bf16, or 'sdpa'")
    from torch.nn.attention.varlen import varlen_attn  # here, because it imports the whole compiler

    starts = cumulative_lengths(shapes, qkv.device)
    longest = max(length for _, length in shapes)
    q, k, v = qkv.unbind(1)
    output: Any = varlen_attn(q, k, v, starts, starts, longest, longest)
    return output.flatten(1)


def _attend_xformers(qkv: Tensor, shapes: tuple[Shape, ...]) -> Tensor:
    _require_cuda("xformers", qkv.device)
    q, k, v = qkv.unsqueeze(0).unbind(2)  # each [1 tokens heads head_dim]
    bias = _block_diagonal(shapes, qkv.device)
    return _import_xformers().memory_efficient_attention(q, k, v, attn_bias=bias).squeeze(0).flatten(1)


@lru_cache(maxsize=64)
def _cumulative_lengths(shapes: tuple[Shape, ...], device: torch.device) -> Tensor:
    with torch.inference_mode(False):  # what is kept must also serve a training
        lengths = torch.tensor([0, *(length for samples, length in shapes for _ in range(samples))])
        return lengths.cumsum(0).to(device, torch.int32)


@lru_cache(maxsize=64)
def _block_diagonal(shapes: tuple[Shape, ...], device: torch.device) -> Any:
    with torch.inference_mode(False):
        lengths = [length for samples, length in shapes for _ in range(samples)]
        return _import_xformers().BlockDiagonalMask.from_seqlens(lengths, device=device)


def _require_cuda(backend: Backend, device: torch.device) -> None:
    if device.type != "cuda":
        raise InputError(f"attention is '{backend}', which needs a GPU, but runs on {device}; set it to 'sdpa'")


def _import_xformers() -> Any:
    try:
        from xformers.ops import fmha  # pyright: ignore[reportMissingImports]  # an extra, heavy, CUDA only
    except ImportError as error:
        raise InputError(
            "attention is 'xformers', which is not installed; install the gpu extra or set 'sdpa'"
        ) from error
    return fmha
