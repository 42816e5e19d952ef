"""The looks of all parts made into one manifest: equal ids and copies leave it, and every removal has its reason.

Goes over the parts four times, in order, and keeps about 100 bytes an image in between.
"""

import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Int64, UInt8

from dinov2.curation.filter.filters import FilterParams
from dinov2.curation.filter.hamming import find_copies
from dinov2.curation.filter.hashing import PcaHash, fit_pca_hash, sample_indices
from dinov2.params import InputError
from dinov2.records import LOOKS, MANIFEST, REMOVED, Summary

logger = logging.getLogger(__name__)

GROUP_ROWS = 65_536  # rows of a written row group, at least
ID_BYTES = 32


class Fit(NamedTuple):
    """The images nothing is wrong with, in order, as they are kept: after any blurring."""

    ids: UInt8[np.ndarray, "n 32"]
    pixels: Int64[np.ndarray, " n"]
    reasons: dict[str, int]
    """Of all others: images a reason."""
    damaged: dict[str, int]
    """Images that could not be read, a shard."""


def gather(parts: Sequence[Path], params: FilterParams, out: Path) -> Summary:
    """Write manifest.parquet, removed.parquet, looks.parquet and pca_hash.npz to `out`.

    Of images with equal ids the first stays. Of copies by PCA hash the one with most pixels stays, of equals the first;
    it is the witness. Raises InputError if all are dropped; `gates` limit the share.
    """
    fit = _read_fit(parts)
    num_in = len(fit.ids) + sum(fit.reasons.values())
    if num_in == 0:
        raise InputError("download left no image to filter; crawl other pages, or see its removed.parquet for why")
    for shard, count in sorted(fit.damaged.items()):
        logger.warning("shard %s is damaged: %d images of it can't be read, left out", shard, count)
    for name, networks in (("nsfw", params.nsfw), ("faces", params.faces)):
        if networks is None:
            logger.warning("filter.%s is null: no image was checked", name)
    repeated = find_copies(fit.ids, np.arange(len(fit.ids)), max_hamming_bits=0)
    pca_hash, hashes = _hashes(parts, len(fit.ids), params)
    alone = np.flatnonzero(repeated < 0)
    order = np.argsort(-fit.pixels[alone], kind="stable")
    copies = find_copies(hashes[alone], order, max_hamming_bits=params.pca_hash.max_hamming_bits)
    copy_of = np.full(len(fit.ids), -1, np.int64)
    copy_of[alone] = np.where(copies < 0, -1, alone[copies])
    found = {"duplicate_id": int((repeated >= 0).sum()), "pca_hash_duplicate": int((copy_of >= 0).sum())}
    dropped = dict(sorted((Counter(fit.reasons) + Counter(found)).items()))
    _check_any_left(dropped, num_in)
    pca_hash.save(out / "pca_hash.npz")
    num_kept, num_blurred, num_faces = _write(parts, fit.ids, repeated, copy_of, out)
    return Summary(
        num_in=num_in,
        num_kept=num_kept,
        dropped=dropped,
        metrics={
            "damaged_shards": float(len(fit.damaged)),
            "nsfw_checked": float(params.nsfw is not None),
            "faces_checked": float(params.faces is not None),
            "num_blurred": float(num_blurred),
            "num_faces_blurred": float(num_faces),
        },
    )


def _read_fit(parts: Sequence[Path]) -> Fit:
    ids, pixels = [np.zeros((0, ID_BYTES), np.uint8)], [np.zeros(0, np.int64)]
    reasons: Counter[str] = Counter()
    damaged: Counter[str] = Counter()
    for part in parts:
        table = pq.read_table(part, columns=["id", "shard", "width", "height", "reason"])
        causes = table["reason"].to_pylist()
        reasons.update(cause for cause in causes if cause is not None)
        shards = zip(causes, table["shard"].to_pylist(), strict=True)
        damaged.update(shard for cause, shard in shards if cause == "damaged_shard")
        table = table.filter(table["reason"].is_null())
        ids.append(np.frombuffer(bytes.fromhex("".join(table["id"].to_pylist())), np.uint8).reshape(-1, ID_BYTES))
        pixels.append(table["width"].to_numpy().astype(np.int64) * table["height"].to_numpy())
    return Fit(np.concatenate(ids), np.concatenate(pixels), dict(reasons), dict(damaged))


def _hashes(parts: Sequence[Path], num_images: int, params: FilterParams) -> tuple[PcaHash, UInt8[np.ndarray, "n b"]]:
    """The hash, fitted on a sample, and that of every image."""
    chosen = sample_indices(num_images, params.pca_hash.sample_size)
    sample, start = [np.zeros((0,) + (params.pca_hash.thumbnail_px,) * 2, np.uint8)], 0
    for part in parts:
        thumbnails = _thumbnails(part, params.pca_hash.thumbnail_px)
        low, high = np.searchsorted(chosen, [start, start + len(thumbnails)])
        sample.append(thumbnails[chosen[low:high] - start])
        start += len(thumbnails)
    pca_hash = fit_pca_hash(np.concatenate(sample), params.pca_hash)
    hashes = [pca_hash.hash(_thumbnails(part, params.pca_hash.thumbnail_px)) for part in parts]
    return pca_hash, np.concatenate(hashes)


def _thumbnails(part: Path, size_px: int) -> UInt8[np.ndarray, "n s s"]:
    column = pq.read_table(part, columns=["thumbnail"])["thumbnail"].drop_null()
    return np.frombuffer(b"".join(column.to_pylist()), np.uint8).reshape(-1, size_px, size_px)


def _check_any_left(dropped: dict[str, int], num_images: int) -> None:
    """Raise InputError if all are dropped, naming the reasons."""
    if sum(dropped.values()) < num_images:
        return
    by_count = sorted(dropped.items(), key=lambda item: (-item[1], item[0]))
    reasons = ", ".join(f"{count} {reason}" for reason, count in by_count)
    raise InputError(f"all {num_images} images are unfit ({reasons}); give better images, or mend `filter:`")


def _write(
    parts: Sequence[Path],
    ids: UInt8[np.ndarray, "n 32"],
    repeated: Int64[np.ndarray, " n"],
    copy_of: Int64[np.ndarray, " n"],
    out: Path,
) -> tuple[int, int, int]:
    """Write the tables, in the order of the parts; how many images are kept, how many of them blurred, and faces."""
    kept, removed, looks = (
        _Table(out / f"{name}.parquet", schema)
        for name, schema in (("manifest", MANIFEST), ("removed", REMOVED), ("looks", LOOKS))
    )
    num_kept = num_blurred = num_faces = start = 0
    for part in parts:
        table = pq.read_table(part)
        faces = table["num_faces"].fill_null(0).to_numpy()
        came = pa.array(np.where(faces > 0, table["source_id"].to_pylist(), table["id"].to_pylist()), pa.string())
        looks.add(table.set_column(0, "id", came).select(LOOKS.names))
        reason, witness = np.array(table["reason"].to_pylist(), object), np.full(len(table), None, object)
        fit = np.flatnonzero(table["reason"].is_null().to_numpy())
        mine = slice(start, start + len(fit))
        start = mine.stop
        for why, cause in (("duplicate_id", repeated[mine]), ("pca_hash_duplicate", copy_of[mine])):
            reason[fit[cause >= 0]] = why
            witness[fit[cause >= 0]] = [ids[index].tobytes().hex() for index in cause[cause >= 0]]
        stays = np.array([why is None for why in reason], bool)
        kept.add(table.filter(pa.array(stays)).select(MANIFEST.names))
        num_kept += int(stays.sum())
        num_blurred, num_faces = num_blurred + int((faces[stays] > 0).sum()), num_faces + int(faces[stays].sum())
        columns = [came, table["url"], pa.array(reason), pa.array(witness, pa.string()), pa.nulls(len(table))]
        lost = pa.table(dict(zip(REMOVED.names, columns, strict=True))).cast(REMOVED)
        removed.add(lost.filter(pa.array(~stays)))
    for written in (kept, removed, looks):
        written.close()
    return num_kept, num_blurred, num_faces


class _Table:
    """A Parquet file that grows by small tables, gathered into groups so that it does not tell how they were cut."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self._path = path
        self._temporary = path.with_name(path.name + ".tmp")
        self._writer = pq.ParquetWriter(self._temporary, schema)
        self._pending: list[pa.Table] = []

    def add(self, table: pa.Table) -> None:
        self._pending.append(table)
        if sum(map(len, self._pending)) >= GROUP_ROWS:
            self._flush()

    def _flush(self) -> None:
        if self._pending:
            self._writer.write_table(pa.concat_tables(self._pending))
        self._pending = []

    def close(self) -> None:
        self._flush()
        self._writer.close()
        self._temporary.replace(self._path)
