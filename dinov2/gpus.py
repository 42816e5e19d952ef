"""GPUs as their data sheets have them, for plans and for the share of the peak that a training reaches."""

from typing import NamedTuple


class GPU(NamedTuple):
    """A kind of GPU."""

    name: str
    peak_tflops: float
    """bf16, dense."""
    memory_gib: float
    """As PyTorch sees it."""


GPUS = {
    "A100": GPU("A100 80 GB", 312.0, 79.0),
    "H100": GPU("H100 80 GB", 989.0, 79.0),
    "H200": GPU("H200", 989.0, 139.0),
}


def peak_tflops(device_name: str) -> float | None:
    """Peak of the GPU that CUDA calls so (`NVIDIA H200`); None if its data sheet is not in GPUS."""
    return next((gpu.peak_tflops for kind, gpu in GPUS.items() if kind in device_name), None)
