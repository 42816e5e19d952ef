"""Copy descriptors by SSCD (arXiv 2202.10261), from its released TorchScript or an ONNX file.

Preprocessing as published: bilinear antialiased resize (shorter side to 288, or a 320 px square), ImageNet
normalisation; the 512-d output is made of unit length. There is no other descriptor to fall back to: a file that is
absent or another one is an error.
"""

import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn.functional import interpolate

from dinov2.curation.params import SSCDParams
from dinov2.data.view import normalise
from dinov2.params import InputError
from dinov2.records import sha256_file

Network = Callable[[Float[Tensor, "b 3 h w"]], Float[Tensor, "b d"]]


class SSCD:
    """The SSCD encoder: `prepare` an image, `encode` a batch, `finish`; there is nothing to `fit`."""

    def __init__(self, params: SSCDParams, *, batch_size: int, device: torch.device) -> None:
        """Raises InputError if the file is absent, another one, or can't be loaded."""
        self.params = params
        self.batch_size = batch_size if params.resize == "square" else 1
        self.network = load_network(Path(params.path), params.sha256, device)

    def prepare(self, image: UInt8[np.ndarray, "h w 3"]) -> UInt8[Tensor, "3 _ _"]:
        """The image at the size that the network sees."""
        height, width = image.shape[:2]
        if self.params.resize == "square":
            size = (self.params.size_px, self.params.size_px)
        else:
            scale = self.params.size_px / min(height, width)
            size = (max(self.params.size_px, int(height * scale)), max(self.params.size_px, int(width * scale)))
        pixels = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1).unsqueeze(0)
        return interpolate(pixels, size=size, mode="bilinear", antialias=True)[0]

    def encode(self, prepared: Sequence[UInt8[Tensor, "3 _ _"]]) -> Float[np.ndarray, "n d"]:
        """Outputs of the network."""
        batches = (
            torch.stack(list(prepared[start : start + self.batch_size]))
            for start in range(0, len(prepared), self.batch_size)
        )
        return torch.cat([self.network(normalise(batch)) for batch in batches]).numpy()

    def fit(self, blocks: Iterable[Float[np.ndarray, "_ d"]]) -> None:
        """Nothing: the network was trained elsewhere."""

    def finish(self, encoded: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n d"]:
        """Of unit length."""
        return encoded / np.maximum(np.linalg.norm(encoded, axis=1, keepdims=True), 1e-12)


def load_network(path: Path, sha256: str, device: torch.device) -> Network:
    """The network in a TorchScript (.pt) or ONNX (.onnx) file, from normalised images to float32 rows on the CPU.

    Raises InputError if the file is absent, has another sha256, or is neither.
    """
    if not path.is_file():
        raise InputError(
            f"embed.copy_descriptor.path: {path} does not exist; put SSCD there or take 'thumbnail'"
        )
    found = sha256_file(path)
    if found != sha256:
        raise InputError(f"embed.copy_descriptor.sha256: {path} has sha256 {found}, not {sha256}; take the right file")
    if path.suffix == ".pt":
        return _load_torchscript(path, device)
    if path.suffix == ".onnx":
        return _load_onnx(path)
    raise InputError(f"embed.copy_descriptor.path: {path} is neither .pt (TorchScript) nor .onnx; give one of these")


def _load_torchscript(path: Path, device: torch.device) -> Network:
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", r"`torch\.jit\.load` is deprecated", DeprecationWarning)
            network = torch.jit.load(str(path), map_location=device)  # the form that SSCD is released in
    except RuntimeError as error:
        first = str(error).strip().splitlines()[0]
        raise InputError(
            f"embed.copy_descriptor.path: {path} is no TorchScript file ({first}); give another"
        ) from error
    network.eval()

    @torch.inference_mode()
    def forward(images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]:
        return network(images.to(device)).float().cpu()

    return forward


def _load_onnx(path: Path) -> Network:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own kinds of errors have no public base
        raise InputError(f"embed.copy_descriptor.path: {path} is no ONNX file ({error}); give another") from error
    entry = session.get_inputs()[0]
    if entry.type != "tensor(float)":
        raise InputError(f"embed.copy_descriptor.path: {path} takes {entry.type}, not normalised floats; give another")

    def forward(images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]:
        return torch.from_numpy(session.run(None, {entry.name: images.numpy()})[0])

    return forward
