"""Two descriptors of every image: one to find copies by, one for what it shows.

An image is decoded once for both. The rows of a set are cut into blocks; a block is computed in batches, a thread a
batch, and each thread computes alone: descriptors depend on the params and the data, not on how many threads or workers
there are. Memory: a batch of prepared images and its activations a thread, and the rows of one block.

Limits. Bits are those of one kind of machine: another CPU or a GPU rounds otherwise. Of an image more than eight times
as long as wide only the middle part of that shape is described.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from jaxtyping import Float, UInt8
from threadpoolctl import threadpool_limits
from torch import Tensor

from dinov2.curation.embed.network import Network
from dinov2.curation.embed.sscd import published
from dinov2.curation.embed.thumbnail import Moments, Thumbnails, moments
from dinov2.curation.params import CopyParams, OursParams, SemanticParams, ThumbnailParams
from dinov2.curation.sniff import sniff_mime
from dinov2.data.decode import DecodeError, decode_rgb
from dinov2.data.view import center_crop
from dinov2.distributed import local_device
from dinov2.hub import load_backbone
from dinov2.shards import EXTENSIONS

Image = UInt8[np.ndarray, "h w 3"]
Row = Mapping[str, Any]
Read = Callable[[Row], bytes]
MAX_ASPECT = 8  # a strip of 30,000 x 1 pixels would fill memory when its shorter side is enlarged


class Encoder(Protocol):
    """What turns images into descriptors. Several threads use it at once."""

    def prepare(self, image: Image) -> Any:
        """What `encode` needs of an image."""
        ...

    def encode(self, prepared: Sequence[Any]) -> Float[np.ndarray, "n c"]:
        """A row an image, of any length."""
        ...


class Block(NamedTuple):
    """What embedding made of some consecutive images of a set."""

    samples: list[dict[str, Any]]
    """Of each embedded image: index in the set, id, mime, width, height, length."""
    removed: list[dict[str, Any]]
    """Of each other image: index in the set, reason, its id where it was read."""
    semantic: Float[np.ndarray, "n d"]
    """Of unit length."""
    encoded: Float[np.ndarray, "n c"]
    """What copy descriptors are made of when the whole pool is known."""


class Decoded(NamedTuple):
    """One image, ready for both encoders."""

    sample: dict[str, Any]
    semantic: Any
    copy: Any


class Backbone:
    """The encoder of semantic descriptors: CLS tokens of a backbone of this project."""

    def __init__(
        self, folder: Path, *, bfloat16: bool, device: torch.device, turn: AbstractContextManager[object]
    ) -> None:
        """Raises InputError if it is absent or wrong. `turn` is held while the device computes."""
        model, self.card = load_backbone(folder)
        self.model = model.to(device).eval()
        self.bfloat16 = bfloat16
        self.device = device
        self.turn = turn

    def prepare(self, image: Image) -> UInt8[Tensor, "3 s s"]:
        """The middle of the image, at the size that the backbone was last trained on."""
        return center_crop(image, self.card.image_size_px)

    @torch.inference_mode()
    def encode(self, prepared: Sequence[UInt8[Tensor, "3 s s"]]) -> Float[np.ndarray, "n d"]:
        """CLS tokens."""
        mean, std = (torch.tensor(v, device=self.device).view(1, 3, 1, 1) for v in (self.card.mean, self.card.std))
        with self.turn, torch.autocast(self.device.type, torch.bfloat16, enabled=self.bfloat16):
            batch = torch.stack(list(prepared)).to(self.device)
            return self.model((batch.float() / 255 - mean) / std).float().cpu().numpy()


class Embedder:
    """Both encoders, side by side."""

    def __init__(self, bootstrap: Path, semantic: SemanticParams, copy: CopyParams, *, batch_size: int) -> None:
        """Raises InputError if a network is absent or wrong."""
        device = local_device()
        turn = Lock() if device.type == "cuda" else nullcontext()  # one batch at a time on the GPU, decoding goes on
        self.batch_size = batch_size
        with one_thread():
            self.semantic: Encoder = (
                Backbone(bootstrap, bfloat16=semantic.precision == "bf16", device=device, turn=turn)
                if isinstance(semantic, OursParams)
                else Network(semantic, device=device, turn=turn, where="embed.semantic")
            )
            self.copy: Encoder = (
                Thumbnails(copy)
                if isinstance(copy, ThumbnailParams)
                else Network(published(copy), device=device, turn=turn, where="embed.copy_descriptor")
            )

    def block(self, rows: Sequence[Row], read: Read, *, first: int, to_pack: bool) -> Block:
        """Both descriptors of some images, `first` being the index of the first in its set.

        A row's `id`, where it has one, must be the sha256 of its bytes. `to_pack`: a shard must take its format.
        """
        num_threads = torch.get_num_threads()
        starts = range(0, len(rows), self.batch_size)

        def batch(start: int) -> Block:
            chosen = rows[start : start + self.batch_size]
            results = [self._decode(row, first + start + i, read, to_pack=to_pack) for i, row in enumerate(chosen)]
            return self._encode(results)

        with one_thread(), lone_threads(num_threads) as threads:
            return joined(list(threads.map(batch, starts)))

    def _decode(self, row: Row, index: int, read: Read, *, to_pack: bool) -> Decoded | dict[str, Any]:
        """An image, or why it is left out."""
        try:
            data = read(row)
        except OSError:
            return {"index": index, "reason": "unreadable"}
        sample_id = hashlib.sha256(data).hexdigest()
        if row["id"] not in (None, sample_id):
            return {"index": index, "reason": "wrong_bytes"}
        mime = sniff_mime(data[:64])
        lost = {"index": index, "id": sample_id}
        if to_pack and mime not in EXTENSIONS:
            return {**lost, "reason": "format_not_packed"}
        try:
            image = decode_rgb(data)
        except DecodeError:
            return {**lost, "reason": "undecodable"}
        height, width = image.shape[:2]
        sample = {**lost, "mime": mime, "width": width, "height": height, "length": len(data)}
        image = middle(image)
        return Decoded(sample, self.semantic.prepare(image), self.copy.prepare(image))

    def _encode(self, results: Sequence[Decoded | dict[str, Any]]) -> Block:
        decoded = [result for result in results if isinstance(result, Decoded)]
        removed = [result for result in results if isinstance(result, dict)]
        if not decoded:
            return Block([], removed, np.empty((0, 0), np.float32), np.empty((0, 0), np.float32))
        semantic = self.semantic.encode([image.semantic for image in decoded])
        encoded = self.copy.encode([image.copy for image in decoded])
        semantic, kept = unit(semantic)
        kept &= np.isfinite(encoded).all(axis=1)
        samples = [image.sample for image in decoded]
        removed += [
            {"index": sample["index"], "id": sample["id"], "reason": "no_descriptor"}
            for sample, keep in zip(samples, kept, strict=True)
            if not keep
        ]
        samples = [sample for sample, keep in zip(samples, kept, strict=True) if keep]
        return Block(samples, removed, semantic[kept], encoded[kept])


@contextmanager
def one_thread() -> Iterator[None]:
    """Matrix products by one thread: the order of their sums, so the last bits, would else depend on their number."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1, user_api="blas"):
            yield
    finally:
        torch.set_num_threads(before)


def lone_threads(num: int) -> ThreadPoolExecutor:
    """Threads that compute alone each: OpenMP asks every new thread anew how many it may take."""
    return ThreadPoolExecutor(num, initializer=torch.set_num_threads, initargs=(1,))


def middle(image: Image) -> UInt8[np.ndarray, "_ _ 3"]:
    """The image, or its middle part where one side is more than MAX_ASPECT times the other."""
    height, width = image.shape[:2]
    rows, columns = min(height, MAX_ASPECT * width), min(width, MAX_ASPECT * height)
    top, left = (height - rows) // 2, (width - columns) // 2
    return image[top : top + rows, left : left + columns]


def unit(rows: Float[np.ndarray, "n d"]) -> tuple[Float[np.ndarray, "n d"], np.ndarray]:
    """Rows of unit length, and which of them can have it: those that are finite and not zero."""
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        lengths = np.linalg.norm(rows.astype(np.float64), axis=1)
        return (rows / lengths[:, None]).astype(np.float32), np.isfinite(lengths) & (lengths > 0)


def joined(blocks: Sequence[Block]) -> Block:
    """One block of several, in their order."""
    whole = [block for block in blocks if block.samples] or blocks[:1]
    return Block(
        [sample for block in blocks for sample in block.samples],
        sorted((sample for block in blocks for sample in block.removed), key=lambda sample: sample["index"]),
        np.concatenate([block.semantic for block in whole]),
        np.concatenate([block.encoded for block in whole]),
    )


def save_block(path: Path, block: Block, *, with_moments: bool) -> None:
    """Write a block, `with_moments` of its encoded rows; it has its name only when it is whole."""
    about = np.frombuffer(json.dumps([block.samples, block.removed]).encode(), np.uint8)
    with one_thread():
        more = moments(block.encoded)._asdict() if with_moments and block.samples else {}
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    with temporary.open("wb") as stream:
        np.savez(stream, about=about, semantic=block.semantic.astype(np.float16), encoded=block.encoded, **more)
    temporary.replace(path)


def load_block(path: Path) -> Block:
    """A block that `save_block` wrote."""
    with np.load(path) as arrays:
        samples, removed = json.loads(arrays["about"].tobytes())
        return Block(samples, removed, arrays["semantic"], arrays["encoded"])


def load_samples(path: Path) -> list[dict[str, Any]]:
    """Only the samples of such a block."""
    with np.load(path) as arrays:
        return json.loads(arrays["about"].tobytes())[0]


def load_moments(path: Path) -> Moments | None:
    """Only the sums over the encoded rows of such a block; None if it has no image."""
    with np.load(path) as arrays:
        return Moments(int(arrays["num"]), arrays["total"], arrays["products"]) if "num" in arrays else None
