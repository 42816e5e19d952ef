"""Two descriptors of every image: one to find copies by, one for what it shows.

Images are decoded once, in blocks of fixed size; a finished block is a file below `work`, so that a killed run goes on
where it was. When all blocks are there, the copy encoder is fitted on those of the pool and finishes all of them.
Descriptors leave as float16 rows of unit length.
"""

import hashlib
import json
import logging
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn.functional import normalize

from dinov2.curation.descriptors import store_block
from dinov2.curation.params import CopyParams, ThumbnailParams
from dinov2.curation.sniff import sniff_mime
from dinov2.curation.sscd import SSCD
from dinov2.curation.thumbnail import Thumbnails
from dinov2.data.decode import DecodeError, decode_rgb
from dinov2.data.sources import Source
from dinov2.data.view import center_crop
from dinov2.hub import load_backbone
from dinov2.shards import EXTENSIONS
from dinov2.store import Store

log = logging.getLogger(__name__)
Image = UInt8[np.ndarray, "h w 3"]


class CopyEncoder(Protocol):
    """What turns images into copy descriptors."""

    def prepare(self, image: Image) -> Any:
        """What `encode` needs of an image; called by several threads."""
        ...

    def encode(self, prepared: Sequence[Any]) -> Float[np.ndarray, "n c"]:
        """A row an image, kept until all images are seen."""
        ...

    def fit(self, blocks: Iterable[Float[np.ndarray, "_ c"]]) -> None:
        """Learn what `finish` needs from all rows of the pool."""
        ...

    def finish(self, encoded: Float[np.ndarray, "n c"]) -> Float[np.ndarray, "n d"]:
        """Descriptors of unit length."""
        ...


class Block(NamedTuple):
    """What embedding made of some consecutive images of a source."""

    samples: list[dict[str, Any]]
    """Of each embedded image: index in the source, id, mime, width, height, length."""
    removed: list[dict[str, Any]]
    """Of each other image: index in the source, reason."""
    semantic: Float[np.ndarray, "n d"]
    encoded: Float[np.ndarray, "n c"]


class Decoded(NamedTuple):
    """One image, ready for both networks."""

    sample: dict[str, Any]
    crop: UInt8[Tensor, "3 s s"]
    prepared: Any


class Embedder:
    """The semantic backbone and the copy encoder, side by side."""

    def __init__(self, backbone: Path, copy_params: CopyParams, *, batch_size: int, bfloat16: bool) -> None:
        """Raises InputError if the backbone or a copy network is absent or wrong."""
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        model, self.card = load_backbone(backbone)
        self.model = model.to(self.device).eval()
        self.batch_size = batch_size
        self.bfloat16 = bfloat16
        self.encoder: CopyEncoder = (
            Thumbnails(copy_params)
            if isinstance(copy_params, ThumbnailParams)
            else SSCD(copy_params, batch_size=batch_size, device=self.device)
        )

    def decode(self, source: Source, index: int, *, to_pack: bool) -> Decoded | str:
        """The `index`-th image of `source`, or why it is left out. `to_pack`: a shard must take its format."""
        try:
            data = source.read(index)
        except OSError:
            return "unreadable"
        mime = sniff_mime(data[:16])
        if to_pack and mime not in EXTENSIONS:
            return "format_not_packed"
        try:
            image = decode_rgb(data)
        except DecodeError:
            return "undecodable"
        height, width = image.shape[:2]
        sample_id = hashlib.sha256(data).hexdigest()
        sample = {"index": index, "id": sample_id, "mime": mime, "width": width, "height": height, "length": len(data)}
        return Decoded(sample, center_crop(image, self.card.image_size_px), self.encoder.prepare(image))

    @torch.inference_mode()
    def semantic(self, crops: Sequence[UInt8[Tensor, "3 s s"]]) -> Float[np.ndarray, "n d"]:
        """CLS tokens of unit length."""
        mean = torch.tensor(self.card.mean, device=self.device).view(1, 3, 1, 1)
        std = torch.tensor(self.card.std, device=self.device).view(1, 3, 1, 1)
        features = []
        for start in range(0, len(crops), self.batch_size):
            batch = torch.stack(list(crops[start : start + self.batch_size])).to(self.device)
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bfloat16):
                cls = self.model((batch.float() / 255 - mean) / std)
            features.append(normalize(cls.float(), dim=1).cpu())
        return torch.cat(features).numpy()

    def block(self, source: Source, indices: Sequence[int], threads: ThreadPoolExecutor, *, to_pack: bool) -> Block:
        """Both descriptors of some images of `source`."""
        results = list(threads.map(lambda index: self.decode(source, index, to_pack=to_pack), indices))
        decoded = [result for result in results if isinstance(result, Decoded)]
        removed = [
            {"index": index, "reason": result}
            for index, result in zip(indices, results, strict=True)
            if isinstance(result, str)
        ]
        if not decoded:
            return Block([], removed, np.empty((0, 0), np.float32), np.empty((0, 0), np.float32))
        return Block(
            [image.sample for image in decoded],
            removed,
            self.semantic([image.crop for image in decoded]),
            self.encoder.encode([image.prepared for image in decoded]),
        )


def embed_blocks(
    embedder: Embedder, source: Source, name: str, *, block_rows: int, to_pack: bool, folder: Path
) -> list[Path]:
    """Files of the finished blocks of a source, in order; computes those that are not there yet."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    with ThreadPoolExecutor(torch.get_num_threads()) as threads:
        for number, start in enumerate(range(0, len(source), block_rows)):
            path = folder / f"{name}-{number:05d}.npz"
            if not path.exists():
                indices = range(start, min(start + block_rows, len(source)))
                save_block(path, embedder.block(source, indices, threads, to_pack=to_pack))
                log.info("%s: %d of %d images embedded", name, indices.stop, len(source))
            paths.append(path)
    return paths


def save_block(path: Path, block: Block) -> None:
    """Write a block; it has its name only when it is whole, so the file is its own mark of completion."""
    about = np.frombuffer(json.dumps([block.samples, block.removed]).encode(), np.uint8)
    temporary = path.with_suffix(".tmp")
    with temporary.open("wb") as stream:
        np.savez(stream, about=about, semantic=block.semantic.astype(np.float16), encoded=block.encoded)
    temporary.replace(path)


def load_block(path: Path) -> Block:
    """A block that `save_block` wrote."""
    with np.load(path) as arrays:
        samples, removed = json.loads(arrays["about"].tobytes())
        return Block(samples, removed, arrays["semantic"], arrays["encoded"])


class Finished(NamedTuple):
    """A whole set, its descriptors in the store."""

    samples: list[dict[str, Any]]
    removed: list[dict[str, Any]]
    """As in a block; for a repeated image also the `witness_id`, which is its own id."""
    blobs: dict[str, list[str]]
    """{"copy": blocks, "semantic": blocks}, aligned with `samples`."""


def fit(embedder: Embedder, pool: Sequence[Path]) -> None:
    """Fit the copy encoder on the pool's blocks, in their order."""
    embedder.encoder.fit(block.encoded for block in map(load_block, pool) if block.samples)


def finish_set(
    embedder: Embedder, paths: Sequence[Path], *, store: Store, work: Path, drop_repeated: bool
) -> Finished:
    """Put the descriptors of a set's blocks into the store; of images with equal bytes only the first stays."""
    result = Finished([], [], {"copy": [], "semantic": []})
    seen: set[str] = set()
    for path in paths:
        block = load_block(path)
        result.removed.extend(block.removed)
        chosen = []
        for row, sample in enumerate(block.samples):
            if drop_repeated and sample["id"] in seen:
                result.removed.append({**sample, "reason": "duplicate", "witness_id": sample["id"]})
            else:
                chosen.append(row)
                seen.add(sample["id"])
        if chosen:
            result.samples.extend(block.samples[row] for row in chosen)
            result.blobs["copy"].append(store_block(store, work, embedder.encoder.finish(block.encoded[chosen])))
            result.blobs["semantic"].append(store_block(store, work, block.semantic[chosen]))
    return result
