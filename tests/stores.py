"""Small repositories with a store and outputs that pin blobs, and what lies below a URL."""

import hashlib
import json
from pathlib import Path
from uuid import uuid4

import fsspec

from dinov2.store import Store, StoreParams


def set_store(folder: Path, **values: str | None) -> Store:
    (folder / "params.yaml").write_text(json.dumps({"store": values}))
    return Store(StoreParams(**values))  # pyright: ignore[reportArgumentType]


def fill(folder: Path, contents: list[bytes], out: str | None) -> list[str]:
    """Put blobs into the store, pinned by the output."""
    store = Store(StoreParams(**json.loads((folder / "params.yaml").read_text())["store"]))
    names = [add(store, content) for content in contents]
    if out is not None:
        store.pin(folder / out, names)
    return names


def add(store: Store, content: bytes) -> str:
    path = Path(uuid4().hex)
    path.write_bytes(content)
    return store.add(path, ".tar")


def name_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest() + ".tar"


def contents(url: str) -> dict[str, bytes]:
    """All that lies below a URL, by file name."""
    filesystem, root = fsspec.url_to_fs(url)
    return {path.rpartition("/")[2]: filesystem.cat_file(path) for path in filesystem.find(root)}


def blobs(*found: bytes) -> dict[str, bytes]:
    return {name_of(content): content for content in found}


ALL = blobs(b"one", b"two" * 1000, b"")


def empty_store(url: str) -> None:
    filesystem, root = fsspec.url_to_fs(url)
    filesystem.rm(root, recursive=True)
