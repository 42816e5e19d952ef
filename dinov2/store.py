"""The content-addressed store of everything bulky: shards and embedding blocks, each named by the sha256 of its bytes.

DVC tracks manifests; a manifest names its blobs, and the file `blobs.json` beside it pins their sizes. So the bulk
never passes through a DVC cache, and two outputs that hold the same bytes share them.
"""

import os
import shutil
from collections.abc import Iterable
from pathlib import Path

import fsspec

from dinov2.params import InputError, Params
from dinov2.records import sha256_file, write_json


class StoreParams(Params):
    """Where blobs lie."""

    url: str
    """Any fsspec URL; a plain path is a folder of this machine."""
    cache: str
    """Local folder for copies of remote blobs; not used when `url` is a folder."""


class Store:
    """Blobs by name (`<sha256><suffix>`), written once and never edited."""

    def __init__(self, params: StoreParams) -> None:
        self.params = params
        self.filesystem, self.root = fsspec.url_to_fs(params.url)

    @property
    def is_local(self) -> bool:
        """Whether blobs are files of this machine's file system."""
        return isinstance(self.filesystem, fsspec.get_filesystem_class("file"))

    def add(self, path: Path, suffix: str) -> str:
        """Move the file `path` into the store; returns the blob's name, e.g. `4f…e1.tar`."""
        name = sha256_file(path) + suffix
        target = self._remote(name)
        if self.filesystem.exists(target):
            path.unlink()
            return name
        self.filesystem.makedirs(target.rpartition("/")[0], exist_ok=True)
        if self.is_local:
            temporary = Path(f"{target}.{os.getpid()}.tmp")  # a move across file systems is a copy, so not in place yet
            shutil.move(path, temporary)
            temporary.replace(target)
        else:
            self.filesystem.put_file(str(path), target)
            path.unlink()
        return name

    def local(self, name: str) -> Path:
        """A local file with the blob's bytes, fetched once where the store is remote. Raises InputError if absent."""
        if self.is_local:
            path = Path(self._remote(name))
            if not path.exists():
                raise InputError(self._absent(name))
            return path
        cached = Path(self.params.cache) / name
        if not cached.exists():
            if not self.filesystem.exists(self._remote(name)):
                raise InputError(self._absent(name))
            cached.parent.mkdir(parents=True, exist_ok=True)
            temporary = cached.with_name(f"{name}.{os.getpid()}.tmp")
            self.filesystem.get_file(self._remote(name), str(temporary))
            temporary.replace(cached)
        return cached

    def check(self, names: Iterable[str], *, needed_by: Path) -> None:
        """Raise InputError if any of the blobs is absent, naming the first and their number."""
        absent = [name for name in dict.fromkeys(names) if not self.filesystem.exists(self._remote(name))]
        if absent:
            first = self._absent(absent[0])
            raise InputError(f"{needed_by} needs {len(absent)} blobs that are absent; the first: {first}")

    def pin(self, folder: Path, names: Iterable[str]) -> None:
        """Write `folder/blobs.json`: the blobs that the manifests in `folder` name, with their sizes in bytes."""
        sizes = {name: self.filesystem.size(self._remote(name)) for name in sorted(set(names))}
        write_json(folder / "blobs.json", sizes)

    def _remote(self, name: str) -> str:
        return f"{self.root}/{name[:2]}/{name}"

    def _absent(self, name: str) -> str:
        return f"blob {name} is not in the store {self.params.url}; copy it there or run `dvc repro -f` of its stage"
