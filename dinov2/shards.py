"""Shards: plain WebDataset tars of images, read in order or at random.

A shard holds `<id>.<ext>` and `<id>.json` for every image, in the order they were added, with no owner and no time, so
that the same images give the same bytes. The manifest is its index: a row gives shard, offset and length.
"""

import hashlib
import io
import json
import os
import tarfile
import threading
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from dinov2.store import Store

MAX_PIXELS = 1 << 26  # 67 megapixels; an image above this is an attack or an accident. Below Pillow's own limit
EXTENSIONS = {"image/jpeg": "jpg", "image/png": "png", "image/webp": "webp", "image/gif": "gif", "image/avif": "avif"}


def _is_header(block: bytes, row: Mapping[str, Any]) -> bool:
    """Whether a block of a tar (name from byte 0, size in octal from byte 124) heads the image of a manifest row."""
    return block.startswith(f"{row['id']}.".encode()) and block[124:136] == f"{row['length']:011o}\0".encode()


class ShardWriter:
    """Packs images into shards of about `shard_mb` and puts each finished one into the store.

    with ShardWriter(store, work / "shards", shard_mb=1000) as writer:
        writer.add(data, row)          # row: the sample's columns, without shard, offset, length, id
    writer.rows                        # rows of MANIFEST's columns
    """

    def __init__(self, store: Store, folder: Path, *, shard_mb: int) -> None:
        self.rows: list[dict[str, Any]] = []
        self._store = store
        self._path = folder / "open-shard.tar"
        self._limit_bytes = shard_mb * 1_000_000
        self._pending: list[dict[str, Any]] = []
        self._tar: tarfile.TarFile | None = None
        folder.mkdir(parents=True, exist_ok=True)

    def add(self, data: bytes, row: Mapping[str, Any]) -> str:
        """Append one image; returns its id. `row` needs at least `mime`."""
        if self._tar is None:
            self._tar = tarfile.open(self._path, "w", format=tarfile.USTAR_FORMAT)  # noqa: SIM115 - closed by _finish
        sample_id = hashlib.sha256(data).hexdigest()
        offset = self._append(f"{sample_id}.{EXTENSIONS[row['mime']]}", data)
        about = {key: value for key, value in row.items() if key not in ("shard", "offset", "length", "id")}
        self._append(f"{sample_id}.json", json.dumps(about, sort_keys=True).encode())
        self._pending.append({**row, "id": sample_id, "offset": offset, "length": len(data)})
        if self._tar.offset >= self._limit_bytes:
            self._finish()
        return sample_id

    def _append(self, name: str, data: bytes) -> int:
        assert self._tar is not None
        info = tarfile.TarInfo(name)
        info.size = len(data)
        self._tar.addfile(info, io.BytesIO(data))
        padded = -(-len(data) // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
        return self._tar.offset - padded

    def _finish(self) -> None:
        if self._tar is None:
            return
        self._tar.close()
        self._tar = None
        shard = self._store.add(self._path, ".tar")
        self.rows.extend({**row, "shard": shard} for row in self._pending)
        self._pending = []

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._finish()
        elif self._tar is not None:
            self._tar.close()


class ShardReader:
    """Random access to the images of shards; keeps one open file a shard. Safe to share between threads."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._files: dict[str, int] = {}
        self._lock = threading.Lock()

    def read(self, row: Mapping[str, Any]) -> bytes:
        """Bytes of the image of a manifest row.

        Raises InputError if the blob is absent, OSError if it is cut short or holds something else at that place: the
        tar header before the image must tell of that id and length.
        """
        shard, offset, length = row["shard"], row["offset"], row["length"]
        with self._lock:
            if shard not in self._files:
                self._files[shard] = os.open(self._store.local(shard), os.O_RDONLY)
        start = offset - tarfile.BLOCKSIZE
        header = os.pread(self._files[shard], tarfile.BLOCKSIZE, start) if start >= 0 else None
        if header is not None and len(header) < tarfile.BLOCKSIZE:
            raise OSError(f"shard {shard} is cut short: it ends before {row['id']} at {offset}")
        if header is None or not _is_header(header, row):
            raise OSError(f"shard {shard} does not hold {row['id']} at {offset}, {length} bytes long")
        data = os.pread(self._files[shard], length, offset)
        if len(data) != length:
            raise OSError(f"shard {shard} is cut short: {len(data)} of {length} bytes at {offset}")
        return data

    def close(self) -> None:
        """Close every shard that was opened."""
        for handle in self._files.values():
            os.close(handle)
        self._files = {}
