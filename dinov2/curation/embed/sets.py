"""The three sets that are embedded: their rows, their images, and how they are cut into blocks. Imports no torch.

The pool is a manifest. Seeds and evaluation images are folders, which are listed once, so that a block is found without
walking the folder again.
"""

import json
import os
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from dinov2.curation.descriptors import EMBEDDED, SetName
from dinov2.data.sources import FolderSource
from dinov2.params import InputError
from dinov2.records import MANIFEST, write_json, write_table
from dinov2.shards import ShardReader
from dinov2.store import Store
from dinov2.tables import distinct, open_table, read_rows

Row = dict[str, Any]
NAMES: tuple[SetName, ...] = ("pool", "seeds", "evaluation")


class Span(NamedTuple):
    """Consecutive rows of a set: what a block is made of."""

    name: SetName
    number: int
    """Of the block in its set."""
    start: int
    stop: int

    def file(self, folder: Path, suffix: str) -> Path:
        """A file of this block below `folder`."""
        return folder / f"{self.name}-{self.number:06d}{suffix}"


@dataclass(frozen=True)
class Sets:
    """Where the sets come from."""

    manifest: Path
    seeds: Path
    evaluation: Path
    work: Path
    """A folder for the lists of seeds and evaluation images."""
    may_be_empty: Collection[SetName]
    """Sets that may have no image."""

    def prepare(self, store: Store) -> None:
        """List the folders and look for the shards, unless that was done; several processes may do so at once.

        Raises InputError if a set is empty that must not be, or a shard absent.
        """
        if self._others.exists() and all(self.table(name).exists() for name in NAMES):
            return
        num_others: dict[SetName, int] = {}
        for name in ("seeds", "evaluation"):
            source = FolderSource(self.folder(name), may_be_empty=name in self.may_be_empty)
            num_others[name] = source.others.total()
            unknown = dict.fromkeys(EMBEDDED.names)
            rows = ({**unknown, "path": source.id(i), "label": source.label(i)} for i in range(len(source)))
            temporary = self.work / f"{name}.{os.getpid()}.tmp"
            write_table(temporary, EMBEDDED, rows)
            temporary.replace(self.table(name))
        if not self.size("pool"):
            raise InputError(f"{self.manifest} has no image; lower the thresholds of filter, or crawl other pages")
        store.check(distinct(self.manifest, MANIFEST, "shard"), needed_by=self.manifest)
        temporary = self.work / f"{self._others.name}.{os.getpid()}"
        write_json(temporary, num_others)
        temporary.replace(self._others)  # last of all: it marks that all is listed

    def num_others(self, name: SetName) -> int:
        """Files of a folder that are not taken for images."""
        return json.loads(self._others.read_text())[name]

    @property
    def _others(self) -> Path:
        return self.work / "others.json"

    def table(self, name: SetName) -> Path:
        """The rows of a set."""
        return self.manifest if name == "pool" else self.work / f"{name}.parquet"

    def folder(self, name: SetName) -> Path:
        """Where the images of seeds or evaluation lie."""
        return self.seeds if name == "seeds" else self.evaluation

    def size(self, name: SetName) -> int:
        """Number of rows."""
        with open_table(self.table(name), MANIFEST if name == "pool" else EMBEDDED) as file:
            return file.metadata.num_rows

    def spans(self, block_rows: int) -> list[Span]:
        """The blocks of all sets."""
        sizes = {name: self.size(name) for name in NAMES}
        return [
            Span(name, start // block_rows, start, min(start + block_rows, sizes[name]))
            for name in NAMES
            for start in range(0, sizes[name], block_rows)
        ]

    def rows(self, span: Span) -> list[Row]:
        """Rows of EMBEDDED of a block; of a folder's image only path and label are known."""
        schema = MANIFEST if span.name == "pool" else EMBEDDED
        rows = read_rows(self.table(span.name), schema, span.start, span.stop)
        return [{**dict.fromkeys(EMBEDDED.names), **row} for row in rows]

    @contextmanager
    def reader(self, name: SetName, store: Store) -> Iterator[Callable[[Mapping[str, Any]], bytes]]:
        """Gives the bytes of a row's image; raises OSError where they can't be had."""
        if name != "pool":
            folder = self.folder(name)
            yield lambda row: (folder / row["path"]).read_bytes()
            return
        shards = ShardReader(store)
        try:
            yield shards.read
        finally:
            shards.close()
