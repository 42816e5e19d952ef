"""Where products of matrices are computed and compared with a score: NumPy, or torch on a CPU or a GPU."""

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from dinov2.params import InputError

Device = Literal["cpu", "cuda"]
Precision = Literal["fp32", "bf16"]

MARGIN = 1e-4  # above the rounding of a float32 product of two unit vectors
BF16_MARGIN = 2.0**-7  # and of one of bf16 numbers: 2^-8 for both factors, and the sum's own rounding
VERIFY_DIMS = 2**16  # a candidate costs what so many dimensions of a pair in a product do
CPU_TILE, CUDA_TILE = (512, 2048), (8192, 2**20)  # on a CPU, products that stay in the second-level cache
STRIP = 16384  # columns that a GPU multiplies at once
GROUP = 512  # of which it looks at the largest product first
GROUPS_AT_ONCE = 2048  # that are looked into together: a gigabyte
UPLOAD_ROWS = 2**16  # that pass through pinned memory together
PLACES_AT_ONCE = 2**19  # that are narrowed together: two gigabytes


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
        """Flat places of what reaches the score, in order."""
        return np.flatnonzero(left @ right.T >= np.float32(score))

    def narrowed(
        self, places: NDArray[np.int64], left: NDArray[np.float32], right: NDArray[np.float32], score: float
    ) -> NDArray[np.int64]:
        """Some or all of the places, among them all where the product of these rows reaches the score."""
        return _narrowed(self, places, left, right, score)


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

        whole = torch.from_numpy(rows)
        if self.device.type == "cpu":
            return whole.to(self.dtype)
        uploaded = torch.empty(whole.shape, dtype=self.dtype, device=self.device)
        pinned = torch.empty(min(UPLOAD_ROWS, len(rows)), rows.shape[1], dtype=self.dtype, pin_memory=True)
        for part, place in zip(whole.split(UPLOAD_ROWS), uploaded.split(UPLOAD_ROWS), strict=True):
            place.copy_(pinned[: len(part)].copy_(part))
        return uploaded

    def hits(self, left: Any, right: Any, score: float) -> Any:
        """Flat places of what reaches the score, which is rounded like the products; a tensor on a GPU."""
        import torch

        bound = torch.tensor(score, dtype=self.dtype)
        if self.device.type == "cuda":
            reduced = torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction
            torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
            places = grouped_hits(left, right, bound.to(self.device))
            torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = reduced
            return places
        if self.dtype == torch.bfloat16:
            # positive bf16 numbers are ordered like their bits, which NumPy compares nine times as fast as torch
            bits = np.int16(bound.view(torch.int16).item() if score > 0 else -(2**15))
            return np.flatnonzero((left @ right.T).view(torch.int16).numpy() >= bits)
        return np.flatnonzero((left @ right.T >= bound).numpy())

    def narrowed(self, places: Any, left: Any, right: Any, score: float) -> Any:
        """Some or all of the places, among them all where the product of these rows reaches the score."""
        if self.device.type == "cuda":
            return narrowed_by_rows(places, left, right, score)
        return _narrowed(self, places, left, right, score)


def _narrowed(
    engine: "Engine", places: NDArray[np.int64], left: Any, right: Any, score: float
) -> NDArray[np.int64]:
    """By a product of all rows, where that costs less than what comes of many places."""
    if len(places) <= len(left) * len(right) * left.shape[1] // VERIFY_DIMS:
        return places
    return np.intersect1d(places, engine.hits(left, right, score), assume_unique=True)


def narrowed_by_rows(places: Any, left: Any, right: Any, score: float) -> Any:
    """Those places (a tensor) where the product of two rows, summed in float32, reaches the score."""
    import torch

    kept = [places[:0]]
    for some in places.split(PLACES_AT_ONCE):
        row, column = torch.div(some, len(right), rounding_mode="floor"), some % len(right)
        kept.append(some[torch.linalg.vecdot(left[row].float(), right[column].float()) >= score])
    return torch.cat(kept)


def grouped_hits(left: Any, right: Any, bound: Any) -> Any:
    """Flat places, in no order, of what reaches the bound; for a GPU, which is not waited for in between.

    Few products do. So only the largest of each group of columns is looked at, and what that finds computed again.
    """
    import torch

    whole = len(right) // GROUP * GROUP
    groups = right[:whole].view(-1, GROUP, right.shape[1])
    near = torch.empty(len(left), len(groups), dtype=torch.bool, device=left.device)
    for start in range(0, whole, STRIP):
        product = left @ right[start : min(start + STRIP, whole)].T
        number = start // GROUP
        near[:, number : number + product.shape[1] // GROUP] = product.unflatten(1, (-1, GROUP)).amax(2) >= bound
    found = []
    for row, group in zip(*(index.split(GROUPS_AT_ONCE) for index in near.nonzero(as_tuple=True)), strict=True):
        product = (groups[group] @ left[row].unsqueeze(2)).squeeze(2)
        one, place = (product >= bound).nonzero(as_tuple=True)
        found.append(row[one] * len(right) + group[one] * GROUP + place)
    row, place = (left @ right[whole:].T >= bound).nonzero(as_tuple=True)
    return torch.cat([*found, row * len(right) + whole + place])


def in_order(places: Any) -> NDArray[np.int64]:
    """Places of an engine as an array, sorted."""
    return places if isinstance(places, np.ndarray) else places.sort().values.cpu().numpy()


Engine = NumpyEngine | TorchEngine
