"""Thumbnails: removed images by reason, each copy beside the image that it copies, and what seeds retrieved."""

import heapq
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.dataset as ds

from dinov2.album import Album
from dinov2.lookup import first_by_id, rows

NUM_CONSIDERED = 1000  # rows of a reason, and seeds, of which samples are shown: those of least id, which is a hash
IS_SEED = ds.field("origin") == "seed"


class Removed(NamedTuple):
    """A removed image, with its witness where there is one. Images are data URIs; None where it can't be shown."""

    image: str | None
    witness: str | None
    cosine: float | None
    is_evaluation: bool
    """Whether the witness is an evaluation image; those stay in their folder, which the report is not given."""


class Group(NamedTuple):
    """Some of the images that a stage removed for one reason."""

    stage: str
    reason: str
    num: int
    """How many there are in all."""
    samples: list[Removed]
    has_witness: bool


class Choice(NamedTuple):
    """A seed image and some of the images that it retrieved, most alike first, with their cosines."""

    seed: str | None
    label: str | None
    retrieved: list[tuple[str | None, float]]


def removed_groups(outputs: Mapping[str, Path], album: Album, num_shown: int) -> list[Group]:
    """A group a stage and reason, of those whose images exist, pairs last; samples are spread over the sorted ids.

    Tables are streamed.
    """
    groups = []
    for stage in ("download", "filter", "dedup", "retrieve"):
        table = outputs[stage] / "removed.parquet"
        reasons = first_by_id(table, "reason", NUM_CONSIDERED, ds.field("id").is_valid())
        for reason, (num, members) in reasons.items():
            shown = evenly(sorted(members, key=lambda row: (row["id"], row["url"] or "")), num_shown)
            album.find({image for row in shown for image in (row["id"], _witness(row)) if image})
            samples = [_removed(row, album) for row in shown]
            if any(sample.image for sample in samples):
                has_witness = any(_witness(row) for row in members)
                groups.append(Group(stage, reason, num, samples, has_witness))
    return sorted(groups, key=lambda group: group.has_witness)


def _removed(row: Mapping[str, Any], album: Album) -> Removed:
    witness = _witness(row)
    return Removed(album.thumbnail(row["id"]), album.thumbnail(witness), row["cosine"], album.is_file(witness))


def _witness(row: Mapping[str, Any]) -> str | None:
    """The other image; none where the same bytes were met again."""
    return row["witness_id"] if row["witness_id"] != row["id"] else None


def choices(outputs: Mapping[str, Path], album: Album, num_seeds: int, num_retrieved: int) -> list[Choice]:
    """Seeds that retrieved most, one of each label where there are labels, each with its nearest images."""
    table = outputs["retrieve"] / "manifest.parquet"
    _, considered = first_by_id(table, "origin", NUM_CONSIDERED, IS_SEED).get("seed", (0, []))
    seeds = {row["id"]: row for row in considered}
    chosen: dict[str, list[dict[str, Any]]] = {}
    for row in rows(table, ds.field("seed_id").isin(sorted(seeds)) & ~IS_SEED) if seeds else ():
        nearest = chosen.setdefault(row["seed_id"], [])
        nearest.append(row)
        if len(nearest) > 2 * num_retrieved:
            nearest[:] = _nearest(nearest, num_retrieved)
    ranked = sorted(chosen, key=lambda seed: (-min(len(chosen[seed]), num_retrieved), seed))
    by_label: dict[str, str] = {}
    for seed in ranked:
        by_label.setdefault(seeds[seed]["label"] or seed, seed)
    nearest_of = {seed: _nearest(chosen[seed], num_retrieved) for seed in list(by_label.values())[:num_seeds]}
    album.find({*nearest_of, *(row["id"] for nearest in nearest_of.values() for row in nearest)})
    shown = []
    for seed, nearest in nearest_of.items():
        retrieved = [(album.thumbnail(row["id"]), row["cosine"] or 0.0) for row in nearest]
        shown.append(Choice(album.thumbnail(seed), seeds[seed]["label"], retrieved))
    return shown


def _nearest(retrieved: list[dict[str, Any]], num: int) -> list[dict[str, Any]]:
    return heapq.nsmallest(num, retrieved, key=lambda row: (-(row["cosine"] or 0.0), row["id"]))


def evenly(items: Sequence[dict[str, Any]], num: int) -> list[dict[str, Any]]:
    """At most `num` of the items, at even distances."""
    places = np.unique(np.linspace(0, len(items) - 1, min(num, len(items))).round().astype(int)) if items else []
    return [items[place] for place in places]
