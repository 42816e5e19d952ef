"""What became of one image, stage by stage, told from the tables that the stages left.

An image is followed by its id; before it was fetched, by its URL. Where filter blurred faces, the new image is followed
on, and back to the bytes that were fetched. A stage that has no output yet is not part of the story.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pyarrow.compute as pc
import pyarrow.dataset as ds

from dinov2.lookup import Row, batches, rows_with
from dinov2.params import InputError

LEAST_DIGITS = 6
SETS = ("pool", "seeds", "evaluation")
WITH_IDS = ("download/manifest", "filter/manifest", *(f"embed/{name}" for name in SETS), "embed/removed/seeds")
STARTS_WITH = pc.starts_with  # pyright: ignore[reportAttributeAccessIssue] - made when pyarrow is imported
SHOWN = 5  # of URLs and ids that are told one by one


class Event(NamedTuple):
    """What one stage did with the image."""

    stage: str
    outcome: str  # kept | dropped | blurred | joined
    facts: list[str]


class Link(NamedTuple):
    """A step of the way from a removed image to its cause."""

    id: str
    reason: str
    witness_id: str
    cosine: float | None


class Story(NamedTuple):
    """All that is known of one image."""

    id: str | None
    """None if it was never fetched."""
    url: str | None
    events: list[Event]
    images: list[tuple[str, str]]
    """Ids of the images that play a part, with what they are."""


def trace(data: Path, wanted: str) -> Story:
    """The story of an image below the folder `data`; `wanted` is an id, its first digits, a URL or a seed's path.

    Raises InputError if there is no such image, or more than one.
    """
    if not data.is_dir():
        raise InputError(f"--data {data} is no folder; give the one that holds crawl/, download/ and so on")
    if re.fullmatch(r"[0-9a-f]{1,64}", wanted):
        return _of_image(data, _whole_id(data, wanted))
    return _of_url(data, wanted)


def chain(data: Path, image: str) -> list[Link]:
    """From a removed image from witness to witness to the cause; empty if dedup did not remove it.

    Ends where a witness has the same bytes as an image on the way: those of a seed or an evaluation image.
    """
    links: list[Link] = []
    while image not in {link.id for link in links} and (found := _lost(data, "dedup", image)):
        if found["witness_id"] is None:
            break
        links.append(Link(image, found["reason"], found["witness_id"], found["cosine"]))
        image = found["witness_id"]
    return links


def fate(data: Path, image: str) -> str:
    """In a few words, where the image ended."""
    if curated := rows_with(data / "retrieve/manifest.parquet", "id", [image]):
        return f"in the curated set ({curated[0]['origin']})"
    if rows_with(data / "embed/evaluation.parquet", "id", [image]):
        return "an evaluation image"
    for stage in ("retrieve", "dedup"):
        if lost := _lost(data, stage, image):
            return f"dropped by {stage}: {lost['reason']}"
    for name in SETS:
        if lost := _first(_removed(data, "embed", f"removed/{name}", image)):
            return f"dropped by embed: {lost['reason']}"
    if any(_places(data, image)) or rows_with(data / "filter/manifest.parquet", "id", [image]):
        return "kept so far"
    lost = _lost(data, "filter", image)
    return f"dropped by filter: {lost['reason']}" if lost else "in no table"


def _whole_id(data: Path, prefix: str) -> str:
    if len(prefix) < LEAST_DIGITS:
        raise InputError(f"'{prefix}' is short for an id; give at least {LEAST_DIGITS} of its 64 digits, or a URL")
    found: dict[str, None] = {}
    for table in WITH_IDS:
        for batch in batches(data / f"{table}.parquet", ["id"], STARTS_WITH(ds.field("id"), prefix)):
            found |= dict.fromkeys(batch["id"].to_pylist())
    if not found:
        raise InputError(f"no image below {data} has an id that begins with {prefix}; mend it, or give its URL")
    if len(found) > 1:
        several = ", ".join(sorted(found)[:3])
        raise InputError(f"{prefix} begins the ids of {len(found)} images ({several}...); give more digits")
    return next(iter(found))


def _of_url(data: Path, url: str) -> Story:
    """By URL; an image that was never fetched has no more to tell than that."""
    fetched = _first(
        rows_with(data / "download/manifest.parquet", "url", [url]),
        (row for row in rows_with(data / "download/removed.parquet", "url", [url]) if row["id"]),
        rows_with(data / "embed/seeds.parquet", "path", [url]),
        rows_with(data / "embed/evaluation.parquet", "path", [url]),
    )
    if fetched:
        story = _of_image(data, fetched["id"])
        if fetched.get("reason"):
            facts = [f"{fetched['reason']}: the bytes of this URL were there already", "what follows is of those bytes"]
            story.events.insert(0, Event("download", "dropped", facts))
        return story
    events = list(_crawled(data, url))
    if lost := _first(rows_with(data / "download/removed.parquet", "url", [url])):
        events.append(Event("download", "dropped", [lost["reason"]]))
    if not events:
        raise InputError(f"no table below {data} knows {url}; give it as crawl resolved it, or give an id")
    return Story(None, url, events, [])


def _of_image(data: Path, image: str) -> Story:
    source = _source_of(data, image)
    fetched = _first(rows_with(data / "download/manifest.parquet", "id", [source]))
    blurred = _blurred(data, source)
    last = blurred["id"] if blurred else image
    images = [(image, "this image")]
    if blurred:
        images.append((source, "as fetched") if source != image else (last, "with blurred faces"))
    events: list[Event] = []
    if fetched:
        events += _crawled(data, fetched["url"])
        events.append(_downloaded(data, fetched))
        events += _filtered(data, source, blurred, images)
    events += _embedded(data, last)
    events += _deduplicated(data, last, images)
    events += _retrieved(data, last, images)
    return Story(image, fetched["url"] if fetched else None, events, images)


def _crawled(data: Path, url: str) -> Iterator[Event]:
    again = list(rows_with(data / "crawl/removed.parquet", "url", [url]))
    repeats = [f"met again {len(again)} times: {', '.join(sorted({row['reason'] for row in again}))}"] if again else []
    if record := _first(rows_with(data / "crawl/records.parquet", "url", [url])):
        facts = [f"on the page {record['page_url']}"]
        facts += [f"alternative text: {record['alt']}"] if record["alt"] else []
        facts += [f"its answer is in {record['warc']} at {record['warc_offset']:,}"] if record["warc"] else []
        yield Event("crawl", "kept", facts + repeats)
    elif again:
        yield Event("crawl", "dropped", [again[0]["reason"]])


def _downloaded(data: Path, row: Row) -> Event:
    facts = [f"{row['mime']}, {row['length']:,} bytes", f"shard {row['shard']} at {row['offset']:,}"]
    same = [other["url"] for other in _removed(data, "download", "removed", row["id"])]
    if same:
        facts.append(f"the same bytes came from {len(same)} other URLs: {_some(same)}")
    return Event("download", "kept", facts)


def _filtered(data: Path, source: str, blurred: Row | None, images: list[tuple[str, str]]) -> Iterator[Event]:
    lost = _lost(data, "filter", source)
    if lost and lost["witness_id"] != source:  # else the same image came twice, and one of them stayed
        facts = [lost["reason"]]
        if lost["witness_id"]:
            facts.append(f"like {lost['witness_id']}, which is {fate(data, lost['witness_id'])}")
            images.append((lost["witness_id"], f"witness: {lost['reason']}"))
        yield Event("filter", "dropped", facts)
    elif blurred:
        yield Event("filter", "blurred", [f"goes on as {blurred['id']}, {_size(blurred)}", f"shard {blurred['shard']}"])
    elif kept := _first(rows_with(data / "filter/manifest.parquet", "id", [source])):
        yield Event("filter", "kept", [_size(kept)])


def _embedded(data: Path, image: str) -> Iterator[Event]:
    for name in SETS:
        if lost := _first(_removed(data, "embed", f"removed/{name}", image)):
            yield Event("embed", "dropped", [f"{name}: {lost['reason']}"])
    for name, number, row in _places(data, image):
        facts = [f"row {number:,} of {name}"]
        facts += [f"label {row['label']}"] if row["label"] else []
        facts += [f"file {row['path']}, {_size(row)}"] if row["path"] else []
        yield Event("embed", "kept" if name == "pool" else "joined", facts)


def _deduplicated(data: Path, image: str, images: list[tuple[str, str]]) -> Iterator[Event]:
    links = chain(data, image)
    images += [(link.witness_id, f"{link.reason}, cosine {_cosine(link.cosine)}") for link in links]
    if links:
        steps = [f"{link.reason} of {link.witness_id}, cosine {_cosine(link.cosine)}" for link in links]
        yield Event("dedup", "dropped", [*steps, f"the last of these is {fate(data, links[-1].witness_id)}"])
    elif lost := _lost(data, "dedup", image):
        yield Event("dedup", "dropped", [lost["reason"]])
    elif any(rows_with(data / f"dedup/{table}.parquet", "id", [image]) for table in ("manifest", "seeds")):
        stands_for = _stands_for(data, image)
        group = f"stands for {len(stands_for)} copies: {_some(stands_for)}" if stands_for else "no copy of it was found"
        yield Event("dedup", "kept", [group])
        images += [(copy, "removed as a copy of it") for copy in stands_for[:SHOWN]]


def _stands_for(data: Path, image: str) -> list[str]:
    """All images whose witnesses lead to this one, nearest first."""
    found, newest = [], [image]
    while newest:
        tables = (data / f"dedup/{name}.parquet" for name in ("removed", "seeds_removed"))
        rows = [row["id"] for table in tables for row in rows_with(table, "witness_id", newest)]
        newest = [copy for copy in dict.fromkeys(rows) if copy not in {image, *found}]
        found += newest
    return found


def _retrieved(data: Path, image: str, images: list[tuple[str, str]]) -> Iterator[Event]:
    if row := _first(rows_with(data / "retrieve/manifest.parquet", "id", [image])):
        facts = [f"shard {row['shard']} at {row['offset']:,}", f"cluster {row['cluster']}"]
        if row["origin"] == "seed":
            yield Event("retrieve", "joined", ["a seed, part of the curated set", *facts])
            return
        if row["seed_id"] is None:
            by = f"{row['origin']}, cosine {_cosine(row['cosine'])} to its cluster"
        else:
            seed = _first(rows_with(data / "dedup/seeds.parquet", "id", [row["seed_id"]]))
            about = f" ({seed['path']})" if seed and seed["path"] else ""
            by = f"{row['origin']}-based by the seed {row['seed_id']}{about}, cosine {_cosine(row['cosine'])}"
            images.append((row["seed_id"], f"its seed, cosine {_cosine(row['cosine'])}"))
        yield Event("retrieve", "kept", [by, *facts])
    elif lost := _lost(data, "retrieve", image):
        yield Event("retrieve", "dropped", [lost["reason"]])


def _source_of(data: Path, image: str) -> str:
    """The image as fetched: itself, but for one with blurred faces."""
    row = _first(rows_with(data / "filter/manifest.parquet", "id", [image]))
    return row["source_id"] if row and row["source_id"] else image


def _blurred(data: Path, source: str) -> Row | None:
    """What filter made of the image, if it blurred faces."""
    return _first(rows_with(data / "filter/manifest.parquet", "source_id", [source]))


def _places(data: Path, image: str) -> Iterator[tuple[str, int, Row]]:
    """Set, place and row of an embedded image, a seed's among them: its descriptors stand at that place."""
    for name in SETS:
        start = 0
        for batch in batches(data / f"embed/{name}.parquet", ["id", "label", "path", "width", "height"]):
            place = pc.index(batch["id"], image).as_py()
            if place >= 0:
                yield name, start + place, {column: array[place].as_py() for column, array in batch.items()}
            start += len(batch["id"])


def _removed(data: Path, stage: str, table: str, image: str) -> list[Row]:
    return rows_with(data / stage / f"{table}.parquet", "id", [image])


def _lost(data: Path, stage: str, image: str) -> Row | None:
    return _first(*(_removed(data, stage, table, image) for table in ("removed", "seeds_removed")))


def _first(*found: list[Row] | Iterator[Row]) -> Row | None:
    return next((row for some in found for row in some), None)


def _some(names: list[str]) -> str:
    return ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")


def _size(row: Row) -> str:
    return f"{row['width']:,} x {row['height']:,} px"


def _cosine(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.3f}"
