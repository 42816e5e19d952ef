"""Image records to bytes: those that the crawl itself holds are read, the others are fetched over HTTP.

The work divides twice. Records are read, and at the end packed (ownership.py), in blocks of `records_per_part`; URLs
are fetched in `num_parts` parts, each with the hosts that are its own. Whatever becomes of a record is a row of FOUND
under its position, so that no result depends on who fetched what, when, or after how many kills. A part holds its own
rows in memory, about 1 kB each, and one image at a time.
"""

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

import pyarrow as pa
from pydantic import Field

from dinov2.curation.crawl.domains import REFUSED_DOMAINS, read_domains
from dinov2.curation.crawl.optout import OptOutParams
from dinov2.curation.crawl.urls import UrlRefusedError, canonical, decode_data_uri, local_path
from dinov2.curation.crawl.warc import DamagedWarcError, read_answer
from dinov2.curation.download.answer import HttpParams, NoImageError
from dinov2.curation.download.client import host_of
from dinov2.curation.download.exchange import give, take
from dinov2.curation.download.fetch import Limits, Wanted, fetch_all, host_part
from dinov2.curation.download.fetch_log import Body, Failure, FetchLog, Moved, judge
from dinov2.curation.download.politeness import PolitenessParams, Waits
from dinov2.params import InputError, Params
from dinov2.records import IMAGE_RECORDS
from dinov2.shards import MAX_PIXELS
from dinov2.tables import open_table, read_rows

logger = logging.getLogger(__name__)

NUM_ROUNDS = 3  # over all hosts: for what failed in a way that passes, or was moved to a host of another part
WANTED = pa.schema([("position", pa.int64()), ("url", pa.large_string()), ("num_redirects", pa.int32())])
FOUND = pa.schema(
    [
        ("position", pa.int64()),  # of the record
        ("reason", pa.string()),  # why there is no image; null where there is one
        ("id", pa.string()),
        ("mime", pa.string()),
        ("bodies", pa.string()),  # file below work that holds the bytes; null: where the record says
        ("offset", pa.int64()),  # bytes from its start
        ("length", pa.int64()),  # bytes
    ]
)


class DownloadParams(Params):
    """Where images may come from, and the limits."""

    network: bool
    """Whether images that the crawl does not hold are fetched; otherwise they are dropped as `not_in_crawl`."""
    max_bytes: Annotated[int, Field(gt=0)]
    """Larger images are dropped."""
    max_pixels: Annotated[int, Field(gt=0, le=MAX_PIXELS)]
    """Images that declare more, width times height, are dropped undecoded; nothing larger is ever decoded."""
    num_parts: Annotated[int, Field(gt=0)]
    """Parts that hosts are divided into, each asked by one worker; memory is that of records over parts."""
    records_per_part: Annotated[int, Field(gt=0)]
    """Records read, and packed, together; the last shard of each such block is not full."""
    http: HttpParams
    politeness: PolitenessParams
    opt_out: OptOutParams
    shard_mb: Annotated[int, Field(gt=0)]
    """Megabytes of a shard."""
    max_dropped_share: Annotated[float, Field(ge=0, le=1)]
    """Share of images that may be dropped, copies and opt-outs not counted, before the stage stops."""


def num_blocks(params: DownloadParams, records: Path) -> int:
    """Blocks of records; raises InputError if `records` is no table of IMAGE_RECORDS."""
    with open_table(records, IMAGE_RECORDS) as table:
        return -(-table.metadata.num_rows // params.records_per_part)


def num_host_parts(params: DownloadParams) -> int:
    """Parts of each round of fetching."""
    return params.num_parts if params.network else 0


def read_block(block: int, params: DownloadParams, records: Path) -> list[dict[str, Any]]:
    """The records of one block."""
    start = block * params.records_per_part
    return read_rows(records, IMAGE_RECORDS, start, start + params.records_per_part)


def look_up_block(block: int, params: DownloadParams, *, records: Path, crawl: Path, work: Path) -> None:
    """Look at the images of one block that the crawl holds; leave the others to the parts of their hosts."""
    found: list[tuple[Any, ...]] = []
    wanted: list[tuple[Any, ...]] = []
    for place, record in enumerate(read_block(block, params, records)):
        position = block * params.records_per_part + place
        if not is_remote(record):
            found.append(_found(position, _held(record, params, crawl), None))
        elif params.network:
            wanted.append(Wanted(position, record["url"], 0))
        else:
            found.append(_found(position, Failure("not_in_crawl", is_passing=False), None))
    _give_found(work / "found" / f"held-{block:06d}.arrow", found, params)
    _give_wanted(work / "wanted-0" / f"{block:06d}.arrow", wanted, params)


def fetch_part(part: int, number: int, params: DownloadParams, *, records: Path, work: Path) -> None:
    """Round `number` over the hosts of one part. What may yet be had is left to the next round, unless it is the last.

    A killed part goes on from its log.
    """
    givers = num_blocks(params, records) if number == 0 else params.num_parts
    wanted = [Wanted(*row) for row in take(_files(work / f"wanted-{number}", givers), part)]
    domains = read_domains(records.with_name(REFUSED_DOMAINS))
    limits = Limits(
        params.http, params.politeness, params.opt_out, domains, params.num_parts, params.max_bytes, params.max_pixels
    )
    folder = work / f"fetched-{number}" / f"{part:06d}"
    with FetchLog(folder) as log:
        fetch_all(wanted, limits, log, Waits(work / "waits" / f"{part:06d}.txt"), part=part, folder=folder)
    is_last = number == NUM_ROUNDS - 1
    again: list[tuple[Any, ...]] = []
    found: list[tuple[Any, ...]] = []
    for image in wanted:
        outcome = log.outcomes[image.position]
        if isinstance(outcome, Moved):
            if is_last:
                outcome = Failure("too_many_redirects", is_passing=False)
            else:
                again.append((image.position, *outcome))
                continue
        elif isinstance(outcome, Failure) and outcome.is_passing and not is_last:
            again.append(image)
            continue
        found.append(_found(image.position, outcome, log.bodies_path.relative_to(work)))
    _give_found(work / "found" / f"fetched-{number}-{part:06d}.arrow", found, params)
    if not is_last:
        _give_wanted(work / f"wanted-{number + 1}" / f"{part:06d}.arrow", again, params)


def found_files(params: DownloadParams, records: Path, work: Path) -> list[Path]:
    """The files that hold, all together, one row of FOUND a record."""
    names = [f"held-{block:06d}.arrow" for block in range(num_blocks(params, records))]
    for number in range(NUM_ROUNDS):
        names += [f"fetched-{number}-{part:06d}.arrow" for part in range(num_host_parts(params))]
    return [work / "found" / name for name in names]


def is_remote(record: Mapping[str, Any]) -> bool:
    """Whether a record's image must be fetched."""
    return record["warc"] is None and not record["url"].startswith(("file:", "data:"))


def read_held(record: Mapping[str, Any], max_bytes: int, crawl: Path) -> bytes:
    """Bytes, one more than `max_bytes` at most, of an image that is not remote.

    Raises NoImageError with `bad_status`, `damaged_warc`, `unreadable_file` or `malformed_data_uri`, and InputError if
    a WARC file is gone.
    """
    if record["warc"] is not None:
        return _read_warc(record, max_bytes, crawl)
    if record["url"].startswith("data:"):
        try:
            return decode_data_uri(record["url"])[1]
        except UrlRefusedError as error:
            raise NoImageError(error.reason) from error
    path = local_path(record["url"], crawl)
    try:
        if not path.is_file():  # a pipe would be waited for without end
            raise NoImageError("unreadable_file")
        with path.open("rb") as stream:
            return stream.read(max_bytes + 1)
    except OSError as error:
        raise NoImageError("unreadable_file") from error


def _held(record: Mapping[str, Any], params: DownloadParams, crawl: Path) -> Body | Failure:
    try:
        data = read_held(record, params.max_bytes, crawl)
        sample_id, mime = judge(data, max_bytes=params.max_bytes, max_pixels=params.max_pixels)
    except NoImageError as error:
        return Failure(error.reason, is_passing=False)
    return Body(sample_id, mime, 0, len(data))


def _read_warc(record: Mapping[str, Any], max_bytes: int, crawl: Path) -> bytes:
    path = crawl / record["warc"]
    try:
        url, status, data = read_answer(path, record["warc_offset"], max_bytes=max_bytes)
        is_another = canonical(url) != record["url"]
    except FileNotFoundError as error:
        raise InputError(f"{path} is gone since the crawl was read; put it back, or run crawl again") from error
    except (DamagedWarcError, UrlRefusedError) as error:
        logger.warning("%s at %d of %s: %s", record["url"], record["warc_offset"], record["warc"], error)
        raise NoImageError("damaged_warc") from error
    if is_another:
        logger.warning("%s is not what stands at %d of %s", record["url"], record["warc_offset"], record["warc"])
        raise NoImageError("damaged_warc")
    if status != 200:
        raise NoImageError("bad_status")
    return data


def _found(position: int, outcome: Body | Failure, bodies: Path | None) -> tuple[Any, ...]:
    """A row of FOUND."""
    if isinstance(outcome, Failure):
        return (position, outcome.reason, None, None, None, None, None)
    return (position, None, outcome.id, outcome.mime, bodies and str(bodies), outcome.offset, outcome.length)


def _give_found(path: Path, rows: list[tuple[Any, ...]], params: DownloadParams) -> None:
    """Equal ids come to the same part; records without one are spread evenly."""
    takers = [(row[0] if row[2] is None else int(row[2][:15], 16)) % params.num_parts for row in rows]
    give(path, FOUND, rows, takers, params.num_parts)


def _give_wanted(path: Path, rows: list[tuple[Any, ...]], params: DownloadParams) -> None:
    takers = [host_part(host_of(row[1]), params.num_parts) for row in rows]
    give(path, WANTED, rows, takers, params.num_parts)


def _files(folder: Path, count: int) -> Iterable[Path]:
    return (folder / f"{number:06d}.arrow" for number in range(count))
