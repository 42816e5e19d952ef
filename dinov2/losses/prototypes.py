"""Logits of many samples to many prototypes, a block of prototypes at a time, so that no whole matrix of them is kept.

At the paper's size (5,000 masked patches, 131,072 prototypes) one fp32 matrix of logits has 2.4 GiB, and a plain
Sinkhorn and cross-entropy keep several. Here a block lives as long as it is worked on: blocks are computed anew for
every pass over them, except where all of them together are small.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

KEPT_BYTES = 2**28  # logits that fit here stay between passes
BLOCK_ELEMENTS = {"cpu": 2**18, "cuda": 2**26}  # a core's second-level cache; enough to fill a GPU
LEAST_WIDTH = {"cpu": 1024, "cuda": 4096}  # prototypes of a block, or what a block costs by itself would tell


class Prototypes(NamedTuple):
    """Weight-normed prototypes: sample x has the logits factors * (directions / |directions|) @ x."""

    directions: Float[Tensor, "k d"]
    factors: Float[Tensor, "k 1"]


def product(a: Float[Tensor, "n d"], b: Float[Tensor, "d m"], dtype: torch.dtype) -> Float[Tensor, "n m"]:
    """Logits: a @ b in fp32; on a GPU of factors rounded to `dtype`, whose products are still summed and given in fp32.

    In bf16 a logit's own rounding would be 5 % of a target at temperature 0.04; rounding the factors is not.
    """
    if a.device.type == "cuda" and dtype != torch.float32:
        return torch.mm(a.to(dtype), b.to(dtype), out_dtype=torch.float32)
    return a @ b


def rough_product(a: Float[Tensor, "n d"], b: Float[Tensor, "d m"], dtype: torch.dtype) -> Float[Tensor, "n m"]:
    """Gradients: a @ b, which may be rounded to `dtype` as autocast does."""
    if a.device.type == "cuda" or dtype == torch.float32:
        return product(a, b, dtype)
    return (a.to(dtype) @ b.to(dtype)).float()


def compute_dtype(device: torch.device) -> torch.dtype:
    """The dtype of matrix products here: autocast's where it is on, else fp32."""
    kind = device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else torch.float32


class BlockLogits:
    """logits / temperature of samples `features` [n d] to `prototypes`, in blocks of `width` columns.

    Blocks are fp32. With `again` they are asked for more than once, so that small ones are kept: then they must not be
    changed in place.
    """

    def __init__(
        self,
        features: Float[Tensor, "n d"],
        prototypes: Prototypes,
        *,
        temperature: float,
        dtype: torch.dtype,
        width: int,
        again: bool,
    ) -> None:
        self.features = features.float()
        self.directions = prototypes.directions.float()
        self.scale = prototypes.factors.float()[:, 0] / self.directions.norm(dim=1) / temperature  # [k]
        self.dtype = dtype
        num = len(self.directions)
        self.columns = [slice(start, min(start + width, num)) for start in range(0, num, width)]
        self._keeps = again and 4 * len(self.features) * num <= KEPT_BYTES
        self._kept: dict[int, Tensor] = {}

    def __iter__(self) -> Iterator[Float[Tensor, "n w"]]:
        for number in range(len(self.columns)):
            yield self.block(number)

    def block(self, number: int) -> Float[Tensor, "n w"]:
        """One block."""
        if number in self._kept:
            return self._kept[number]
        columns = self.columns[number]
        logits = product(self.features, self.directions[columns].T, self.dtype).mul_(self.scale[columns])
        if self._keeps:
            self._kept[number] = logits
        return logits


def block_width(num_samples: int, device: torch.device) -> int:
    """Prototypes of a block for that many samples."""
    return max(LEAST_WIDTH[device.type], BLOCK_ELEMENTS[device.type] // max(num_samples, 1))
