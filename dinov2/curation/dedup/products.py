"""Where products of matrices are computed and compared with a score: NumPy, or torch on a CPU or a GPU."""

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from dinov2.params import InputError

Device = Literal["cpu", "cuda"]
Precision = Literal["fp32", "bf16"]

MARGIN = 1e-4  # above the rounding of a float32 product of two unit vectors
BF16_MARGIN = 2.0**-7  # and of one of bf16 numbers: 2^-8 for both factors, and the sum's own rounding
CPU_TILE, CUDA_TILE = (512, 2048), (8192, 16384)  # on a CPU, products that stay in the second-level cache


def engine(device: Device, precision: Precision) -> "Engine":
    """The engine of a device: NumPy where that is the CPU in float32, else torch."""
    return NumpyEngine() if (device, precision) == ("cpu", "fp32") else TorchEngine(device, precision)


class NumpyEngine:
    """Float32 on the CPU; needs no torch."""

    tile = CPU_TILE
    margin = MARGIN

    def prepare(self, rows: NDArray[np.float32]) -> NDArray[np.float32]:
        """The rows themselves."""
        return rows

    def hits(self, left: NDArray[np.float32], right: NDArray[np.float32], score: float) -> NDArray[np.int64]:
        """Flat places of what reaches the score."""
        return np.flatnonzero(left @ right.T >= np.float32(score))


class TorchEngine:
    """Tensors on a device. bf16 products have float32 sums, rounded once."""

    def __init__(self, device: Device, precision: Precision) -> None:
        import torch

        from dinov2.distributed import local_device

        if device == "cuda" and not torch.cuda.is_available():
            raise InputError("dedup.device is cuda, and there is no CUDA device; set it to cpu or run the job on one")
        self.device = local_device() if device == "cuda" else torch.device(device)
        self.dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        self.tile = CPU_TILE if device == "cpu" else CUDA_TILE
        self.margin = BF16_MARGIN if precision == "bf16" else MARGIN

    def prepare(self, rows: NDArray[np.float32]) -> Any:
        """A tensor on the device."""
        import torch

        return torch.from_numpy(rows).to(self.device, self.dtype)

    def hits(self, left: Any, right: Any, score: float) -> NDArray[np.int64]:
        """Flat places of what reaches the score, which is rounded like the products."""
        import torch

        bound = torch.tensor(score, dtype=self.dtype)
        if self.device.type == "cpu" and self.dtype == torch.bfloat16:
            # positive bf16 numbers are ordered like their bits, which NumPy compares nine times as fast as torch
            bits = np.int16(bound.view(torch.int16).item() if score > 0 else -(2**15))
            return np.flatnonzero((left @ right.T).view(torch.int16).numpy() >= bits)
        reduced = torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction
        torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
        product = left @ right.T
        torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = reduced
        return (product >= bound.to(self.device)).flatten().nonzero()[:, 0].cpu().numpy()


Engine = NumpyEngine | TorchEngine
