"""The content-addressed store of everything bulky: shards and embedding blocks, each named by the sha256 of its bytes.

DVC tracks manifests; a manifest names its blobs, and the file `blobs.json` beside it pins their sizes. So the bulk
never passes through a DVC cache, and two outputs that hold the same bytes share them. `python -m dinov2.store` moves
blobs to a remote and back, checks them, and removes those that nothing names.
"""

import hashlib
import os
import re
import shutil
import socket
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from uuid import uuid4

import fsspec

from dinov2.params import InputError, Params, Url
from dinov2.records import sha256_file, write_json
from dinov2.workspace import workspace

BLOB_NAME = re.compile(r"[0-9a-f]{64}(\.[a-z0-9]+)?")
RENAMING = {"file", "local", "sftp", "ssh", "smb", "hdfs", "webhdfs", "arrow_hdfs", "ftp"}  # others appear all at once
ASIDE = "damaged"
CHUNK_BYTES = 1 << 22


class StoreParams(Params):
    """Where blobs lie."""

    url: Url
    """Any fsspec URL; a plain path is a folder of this machine."""
    cache: str
    """Local folder for copies of remote blobs; not used when `url` is a folder."""
    remote: Url | None
    """Any fsspec URL that `python -m dinov2.store push` and `pull` copy to and from; null: none."""


class DamagedError(Exception):
    """Bytes that are not those of the blob's name."""


class Store:
    """Blobs by name (`<sha256><suffix>`), written once and never edited."""

    def __init__(self, params: StoreParams) -> None:
        self.params = params
        self.cache = workspace() / params.cache
        url = params.url if "://" in params.url else str(workspace() / params.url)
        try:
            self.filesystem, self.root = fsspec.url_to_fs(url)
        except (ImportError, ValueError) as error:
            raise InputError(f"the store {params.url} can't be opened ({error}); mend its URL") from error

    @property
    def is_local(self) -> bool:
        """Whether blobs are files of this machine's file system."""
        return isinstance(self.filesystem, fsspec.get_filesystem_class("file"))

    def add(self, path: Path, suffix: str) -> str:
        """Move the file `path` into the store; returns the blob's name, e.g. `4f…e1.tar`."""
        name = sha256_file(path) + suffix
        target = self.path(name)
        if self.filesystem.exists(target) and self.filesystem.size(target) == path.stat().st_size:
            path.unlink()  # not where a power cut left a name without its bytes
            return name
        self.filesystem.makedirs(target.rpartition("/")[0], exist_ok=True)
        if self.is_local:
            temporary = Path(temporary_of(target))  # a move across file systems is a copy, so not in place yet
            shutil.move(path, temporary)
            temporary.replace(target)
        else:
            with path.open("rb") as stream:
                self.receive(name, iter(lambda: stream.read(CHUNK_BYTES), b""))
            path.unlink()
        return name

    def local(self, name: str) -> Path:
        """A local file with the blob's bytes, fetched once where the store is remote. Raises InputError if absent."""
        if self.is_local:
            path = Path(self.path(name))
            if not path.exists():
                raise InputError(self._absent(name))
            return path
        cached = self.cache / name
        if not cached.exists():
            if not self.filesystem.exists(self.path(name)):
                raise InputError(self._absent(name))
            cached.parent.mkdir(parents=True, exist_ok=True)
            temporary = Path(temporary_of(str(cached)))
            self.filesystem.get_file(self.path(name), str(temporary))
            temporary.replace(cached)
        return cached

    def check(self, names: Iterable[str], *, needed_by: Path) -> None:
        """Raise InputError if any of the blobs is absent, naming the first and their number."""
        absent = [name for name in dict.fromkeys(names) if not self.filesystem.exists(self.path(name))]
        if absent:
            first = self._absent(absent[0])
            raise InputError(f"{needed_by} needs {len(absent)} blobs that are absent; the first: {first}")

    def pin(self, folder: Path, names: Iterable[str]) -> None:
        """Write `folder/blobs.json`: the blobs that the manifests in `folder` name, with their sizes in bytes.

        Raises InputError if one is absent: `folder` lies in what a stage made earlier, when it was still there.
        """
        sizes: dict[str, int] = {}
        for name in sorted(set(names)):
            try:
                sizes[name] = self.filesystem.size(self.path(name))
            except FileNotFoundError as error:
                do = f"get it by `python -m dinov2.store pull`, or remove {folder.parent} and run the stage again"
                raise InputError(f"blob {name}, which was made before, is not in the store any more; {do}") from error
        write_json(folder / "blobs.json", sizes)

    def sizes(self) -> dict[str, int]:
        """Bytes of every whole blob, by name."""
        return {path.rpartition("/")[2]: size for path, size in self.files() if path == self.path_if_blob(path)}

    def files(self) -> Iterator[tuple[str, int]]:
        """Path and bytes of everything below the root, by path."""
        self.filesystem.invalidate_cache()
        found = self.filesystem.find(self.root, detail=True)
        return ((path, about["size"]) for path, about in sorted(found.items()))

    def read(self, name: str) -> Iterator[bytes]:
        """The blob's bytes in pieces, as they are there."""
        return self._pieces(self.path(name))

    def receive(self, name: str, pieces: Iterable[bytes]) -> None:
        """Write a blob: whole and looked at before it has its name, or not at all.

        Raises DamagedError if the bytes given, or those that arrived, are not the blob's.
        """
        target = self.path(name)
        temporary = temporary_of(target) if self._renames else target
        self.filesystem.makedirs(target.rpartition("/")[0], exist_ok=True)
        try:
            with self.filesystem.open(temporary, "wb") as stream:
                _check(name, _digest(pieces, stream.write), "damaged where it comes from")
            _check(name, _digest(self._pieces(temporary)), "did not arrive whole")
            if temporary != target:
                self.filesystem.mv(temporary, target)
        except BaseException:
            if self.filesystem.exists(temporary):
                self.filesystem.rm_file(temporary)
            raise

    def is_sound(self, name: str) -> bool:
        """Whether the blob, which is there, has the bytes of its name."""
        return _digest(self.read(name)) == name[:64]

    def put_aside(self, name: str) -> str:
        """Move a damaged blob to where nobody looks for it; returns that place."""
        aside = f"{self.root}/{ASIDE}/{name}"
        self.filesystem.makedirs(aside.rpartition("/")[0], exist_ok=True)
        self.filesystem.mv(self.path(name), aside)
        return aside

    def path(self, name: str) -> str:
        """Where the blob lies; raises InputError for what can't be a blob's name, e.g. `../x`."""
        if BLOB_NAME.fullmatch(name) is None:
            raise InputError(f"'{name}' is not a blob's name (a sha256 and a suffix); make its manifest again")
        return f"{self.root}/{name[:2]}/{name}"

    def path_if_blob(self, path: str) -> str | None:
        """The path a file below the root has if it is a whole blob in its place; None for anything else."""
        name = path.rpartition("/")[2]
        return self.path(name) if BLOB_NAME.fullmatch(name) else None

    @property
    def _renames(self) -> bool:
        protocol = self.filesystem.protocol
        return bool(RENAMING & {protocol} if isinstance(protocol, str) else RENAMING & set(protocol))

    def _pieces(self, path: str) -> Iterator[bytes]:
        with self.filesystem.open(path, "rb", block_size=CHUNK_BYTES) as stream:
            while piece := stream.read(CHUNK_BYTES):
                yield piece

    def _absent(self, name: str) -> str:
        get = "get it by `python -m dinov2.store pull`, or make it again by `dvc repro -f` of its stage"
        return f"blob {name} is not in the store {self.params.url}; {get}"


def temporary_of(path: str) -> str:
    """A name that no other writer has, and that tells who wrote it: `<path>.<host>.<process>.<random>.tmp`."""
    return f"{path}.{_host()}.{os.getpid()}.{uuid4().hex[:8]}.tmp"


def writer_of(path: str) -> int | None:
    """Number of the process of this machine that writes, or wrote, a temporary file; None if it is none of ours."""
    found = re.fullmatch(r".*\.([^./]+)\.(\d+)\.[0-9a-f]{8}\.tmp", path)
    return int(found[2]) if found is not None and found[1] == _host() else None


def _host() -> str:
    return socket.gethostname().partition(".")[0] or "host"


def _check(name: str, found: str, trouble: str) -> None:
    if found != name[:64]:
        raise DamagedError(f"{trouble}: its bytes have sha256 {found}")


def _digest(pieces: Iterable[bytes], write: Callable[[bytes], object] | None = None) -> str:
    """Hexadecimal sha256 of the pieces, each of which is written on the way."""
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece)
        if write is not None:
            write(piece)
    return digest.hexdigest()
