"""What becomes of each image, from the pairs of a join: who is removed, why, and who is the witness.

Holds only images that are in a pair, so memory grows with the number of copies and not of images.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Int

from dinov2.curation.dedup.components import evaluation_contacts, group_copies, preference
from dinov2.curation.dedup.join import Pairs, merged
from dinov2.curation.dedup.pairs import PairFiles, rows_of
from dinov2.curation.descriptors import EMBEDDED, ID, read_ids
from dinov2.params import InputError
from dinov2.records import REMOVED
from dinov2.tables import num_rows, read_batches, write_batches

FACTS = pa.schema([("id", pa.string()), ("width", pa.int32()), ("height", pa.int32())])


def values_at(paths: Sequence[Path], index: Int[np.ndarray, " n"], schema: pa.Schema) -> pa.Table:
    """Rows by number, in rising order, of tables one after another."""
    batches, start = [], 0
    for path in paths:
        for batch in read_batches(path, schema):
            low, high = np.searchsorted(index, [start, start + len(batch)])
            if low < high:
                batches.append(batch.take(pa.array(index[low:high] - start)))
            start += len(batch)
    return pa.Table.from_batches(batches, schema)


def check_inputs(embed: Path, filter_out: Path) -> None:
    """Raise InputError unless tables have their columns and the embedded pool is what the filter kept.

    A part of it will do, in the same order.
    """
    for name in ("seeds", "pool", "evaluation"):
        next(read_batches(embed / f"{name}.parquet", EMBEDDED), None)
    kept = read_ids(filter_out / "manifest.parquet")
    for image in read_ids(embed / "pool.parquet"):
        if image not in kept:  # which goes on to where it is
            raise InputError(
                f"{embed} embeds images that {filter_out} does not have, or not in that order (the first: {image}); "
                "run embed again on this filter's output"
            )


class Verdicts:
    """The verdicts on the images of an embed folder: rows are counted through seeds, then pool."""

    def __init__(
        self,
        embed: Path,
        copies: PairFiles,
        contacts: PairFiles,
        bad: Int[np.ndarray, " b"],
        sets: Mapping[str, Bool[np.ndarray, " m"]],
    ) -> None:
        """Of pairs of images, of images with evaluation images, rows without a descriptor, and who is in each set."""
        self.tables = {name: embed / f"{name}.parquet" for name in ("seeds", "pool")}
        self.starts = {"seeds": 0, "pool": num_rows(self.tables["seeds"])}
        touching = merged(list(contacts))
        self.bad = bad
        self.rows = np.union1d(rows_of(copies), touching.first)
        self.num_pairs = sum(len(pairs.first) for pairs in copies)
        facts = values_at(list(self.tables.values()), self.rows, FACTS)
        self.ids: list[str] = facts["id"].to_pylist()
        area_px = facts["width"].to_numpy().astype(np.int64) * facts["height"].to_numpy()
        place = np.searchsorted(self.rows, touching.first)
        self.contacts = evaluation_contacts(Pairs(place, touching.second, touching.cosine), len(self.rows))
        is_seed = self.rows < self.starts["pool"]
        rank = preference(is_seed, area_px, self.ids)
        self.groups = group_copies(PairFiles(copies.paths, self.rows), rank, self.contacts.witness >= 0)
        self.sizes = np.bincount(self.groups.component, minlength=1)
        self.is_repeated = _repeated(self.ids, is_seed)
        witnesses = np.unique(self.contacts.witness[self.contacts.witness >= 0])
        names = values_at([embed / "evaluation.parquet"], witnesses, ID)["id"].to_pylist()
        self.evaluation_ids: dict[int, str] = dict(zip(witnesses.tolist(), names, strict=True))
        self.set_names = {int(row): name for name, member in sets.items() for row in witnesses[member[witnesses]]}
        self.num_copies_of = {
            name: len(np.unique(touching.first[member[touching.second]])) for name, member in sets.items()
        }

    def write(
        self, name: Literal["seeds", "pool"], kept: Path, schema: pa.Schema, lost: Path
    ) -> tuple[int, dict[str, int]]:
        """Write who stays and who goes, batch by batch; the number that stays, and of the others by reason."""
        start, num_kept, dropped = self.starts[name], 0, Counter[str]()
        with write_batches(kept, schema) as staying, write_batches(lost, REMOVED) as going:
            for batch in read_batches(self.tables[name], EMBEDDED):
                removals = self._removals(start, batch)
                stays = np.ones(len(batch), bool)
                stays[list(removals)] = False
                staying.write_batch(batch.filter(pa.array(stays)).select(schema.names))
                going.write_batch(pa.RecordBatch.from_pylist(list(removals.values()), schema=REMOVED))
                num_kept += int(stays.sum())
                dropped.update(row["reason"] for row in removals.values())
                start += len(batch)
        return num_kept, dict(sorted(dropped.items()))

    def _removals(self, start: int, batch: pa.RecordBatch) -> dict[int, dict[str, Any]]:
        """Rows of REMOVED for those of a batch that go, by their place in it; its first row has number `start`."""
        found: dict[int, dict[str, Any]] = {}
        low, high = np.searchsorted(self.bad, [start, start + len(batch)])
        for row in self.bad[low:high] - start:
            found[int(row)] = {"reason": "bad_descriptor", "witness_id": None, "cosine": None}
        low, high = np.searchsorted(self.rows, [start, start + len(batch)])
        for place in range(low, high):
            verdict = self._verdict(place)
            if verdict is not None:
                found[int(self.rows[place]) - start] = verdict
        columns = {name: batch[name] for name in ("id", "url", "path")}
        for row, verdict in found.items():
            known = {name: column[row].as_py() for name, column in columns.items()}
            verdict.update(id=known["id"], url=known["url"] or known["path"])
        return dict(sorted(found.items()))

    def _verdict(self, place: int) -> dict[str, Any] | None:
        """Reason, witness and cosine of a removal; None if the image stays."""
        row = int(self.contacts.witness[place])
        if row >= 0:
            reason, witness = f"evaluation_copy:{self.set_names[row]}", self.evaluation_ids[row]
            return {"reason": reason, "witness_id": witness, "cosine": float(self.contacts.cosine[place])}
        if self.groups.keep[place]:
            return None
        witness = int(self.groups.witness[place])
        reason = "duplicate_id" if self.is_repeated[place] else "copy"
        return {"reason": reason, "witness_id": self.ids[witness], "cosine": float(self.groups.cosine[place])}


def _repeated(ids: list[str], is_seed: Bool[np.ndarray, " n"]) -> Bool[np.ndarray, " n"]:
    """Which images have the id of one before them in the same table."""
    seen: set[tuple[bool, str]] = set()
    repeated = np.zeros(len(ids), bool)
    for place, key in enumerate(zip(is_seed.tolist(), ids, strict=True)):
        repeated[place] = key in seen
        seen.add(key)
    return repeated
