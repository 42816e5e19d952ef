"""Networks in TorchScript and ONNX files: the view of an image that they take, and their outputs.

Views of one shape are computed as one batch. On the CPU a call is computed by the thread that made it, alone: the order
of a network's sums, and with it the last bits of a descriptor, would else depend on the number of threads.
"""

import logging
import warnings
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.jit._fuser import optimized_execution
from torch.nn.functional import interpolate

from dinov2.curation.model_file import find_model
from dinov2.curation.params import NetworkParams
from dinov2.params import InputError

log = logging.getLogger(__name__)

Forward = Callable[[Tensor], Tensor]  # a batch as the file takes it, anywhere, to rows on the CPU


class Network:
    """An encoder: `prepare` an image, `encode` some of them."""

    def __init__(
        self, params: NetworkParams, *, device: torch.device, turn: AbstractContextManager[object], where: str
    ) -> None:
        """`turn` is held while the device computes; `where` is the params key that errors name.

        Raises InputError if the file is absent, another one, can't be loaded, or does not take such views.
        """
        self.params = params
        self.device = device
        self.turn = turn
        path = find_model(params.path, params.sha256, where=where)
        load = _load_torchscript if params.kind == "torchscript" else _load_onnx
        self.forward, self.max_batch = load(path, params, device, where)
        try:
            rows = self.encode([self.prepare(np.full((64, 96, 3), 127, np.uint8))])
        except Exception as error:  # of torch's or onnxruntime's many kinds
            reason = str(error).strip().splitlines()[-1]
            raise InputError(f"{where}: {params.path} does not take such images ({reason}); mend the params") from error
        if rows.shape[0] != 1:
            raise InputError(f"{where}.path: {params.path} gives {rows.shape[0]} rows an image, not one; give another")

    def prepare(self, image: UInt8[np.ndarray, "h w 3"]) -> UInt8[Tensor, "3 _ _"]:
        """The image at the size that the network sees."""
        params = self.params
        height, width = image.shape[:2]
        short_px = min(height, width)
        size = (params.size_px, params.size_px)
        if params.resize == "short_side":
            size = (params.size_px * height // short_px, params.size_px * width // short_px)
        pixels = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1).unsqueeze(0)
        view = interpolate(pixels, size=size, mode=params.interpolation, antialias=True)[0]
        if params.crop_px is None:
            return view.contiguous()
        top, left = (round((side - params.crop_px) / 2) for side in size)
        return view[:, top : top + params.crop_px, left : left + params.crop_px].contiguous()

    def encode(self, prepared: Sequence[UInt8[Tensor, "3 _ _"]]) -> Float[np.ndarray, "n d"]:
        """A row an image, in their order."""
        by_shape: dict[torch.Size, list[int]] = defaultdict(list)
        for place, view in enumerate(prepared):
            by_shape[view.shape].append(place)
        order, rows = [], []
        for places in by_shape.values():
            step = self.max_batch or len(places)
            for start in range(0, len(places), step):
                chosen = places[start : start + step]
                order.extend(chosen)
                rows.append(self._batch(torch.stack([prepared[place] for place in chosen])))
        return torch.cat(rows)[np.argsort(order)].numpy()

    @torch.inference_mode()
    def _batch(self, views: UInt8[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]:
        mean, std = self.params.mean, self.params.std
        with self.turn:
            if mean is None or std is None:
                return self.forward(views.permute(0, 2, 3, 1).contiguous())
            views = views.to(self.device)
            mean, std = (views.new_tensor(v, dtype=torch.float32).view(1, 3, 1, 1) for v in (mean, std))
            return self.forward((views.float() / 255 - mean) / std)


def _load_torchscript(path: Path, params: NetworkParams, device: torch.device, where: str) -> tuple[Forward, None]:
    """The network; it takes any number of images at once."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", r"`torch\.jit\.load` is deprecated", DeprecationWarning)
            network = torch.jit.load(str(path), map_location=device).eval()  # the form that SSCD is released in
    except RuntimeError as error:
        first = str(error).strip().splitlines()[0]
        raise InputError(f"{where}.path: {params.path} is no TorchScript file ({first}); give another") from error

    def forward(images: Tensor) -> Tensor:
        with optimized_execution(False):  # else later calls take another graph than the first ones
            return network(images.to(device)).float().cpu()

    return forward, None


def _load_onnx(path: Path, params: NetworkParams, device: torch.device, where: str) -> tuple[Forward, int | None]:
    """The network, and how many images it takes at once (None: any number)."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1  # the calling thread
    providers = ["CPUExecutionProvider"]
    if device.type == "cuda" and "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        providers.insert(0, "CUDAExecutionProvider")
    elif device.type == "cuda":
        log.warning("%s runs on the CPU; with onnxruntime-gpu in place of onnxruntime it runs on the GPU", path.name)
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=providers)
    except Exception as error:  # onnxruntime's own kinds of errors have no public base
        raise InputError(f"{where}.path: {params.path} is no ONNX file ({error}); give another") from error
    entry = session.get_inputs()[0]
    takes = "tensor(float)" if params.input == "float_nchw" else "tensor(uint8)"
    if entry.type != takes:
        raise InputError(f"{where}.input: {params.path} takes {entry.type}, not {takes}; mend it or give another file")

    def forward(images: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {entry.name: images.cpu().numpy()})[0]).float()

    return forward, entry.shape[0] if isinstance(entry.shape[0], int) else None
