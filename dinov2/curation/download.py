"""Image records to shards: bytes from the crawl itself, from its folder, or over HTTP; equal bytes stored once.

The kind of an image is read from its first bytes and never from what a server says. Shards hold the images in the order
of the records, so that how many were fetched at once changes nothing.
"""

import hashlib
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

from pydantic import Field

from dinov2.curation.urls import UrlRefusedError, canonical, local_path
from dinov2.curation.warc import DamagedWarcError, read_answer
from dinov2.params import InputError, Params
from dinov2.progress import logged
from dinov2.shards import ShardWriter
from dinov2.store import Store

if TYPE_CHECKING:
    from dinov2.curation.fetch import FetchLog

logger = logging.getLogger(__name__)


class DownloadParams(Params):
    """Where images may come from, and the limits."""

    network: bool
    """Whether images that the crawl does not hold are fetched; otherwise they are dropped as `not_in_crawl`."""
    max_bytes: Annotated[int, Field(gt=0)]
    """Larger images are dropped."""
    timeout_s: Annotated[float, Field(gt=0)]
    """Seconds for one image, redirects and slow servers included."""
    max_redirects: Annotated[int, Field(ge=0)]
    """Redirects followed for one image."""
    max_concurrent: Annotated[int, Field(gt=0)]
    """Images fetched at once."""
    max_per_host: Annotated[int, Field(gt=0)]
    """Images of one host fetched at once."""
    user_agent: Annotated[str, Field(min_length=1)]
    """What servers are told; name yourself and a page that explains."""
    allow_private_addresses: bool
    """Whether loopback and private addresses may be connected to; only for a crawl of one's own servers."""
    shard_mb: Annotated[int, Field(gt=0)]
    """Megabytes of a shard."""
    max_dropped_share: Annotated[float, Field(ge=0, le=1)]
    """Share of images that may be dropped, copies not counted, before the stage stops."""


class NoImageError(Exception):
    """An image that can't be had; `reason` is the drop reason."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class DownloadResult(NamedTuple):
    """Rows of MANIFEST and REMOVED, together one a record, and counts."""

    rows: list[dict[str, Any]]
    removed: list[dict[str, Any]]
    metrics: dict[str, float]


def sniff_mime(head: bytes) -> str | None:
    """The kind of image that begins with the bytes `head` (12 are enough), or None if it is no kind that we keep."""
    if head.startswith(b"\xff\xd8\xff"):
        return "image/jpeg"
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return "image/png"
    if head.startswith((b"GIF87a", b"GIF89a")):
        return "image/gif"
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        return "image/webp"
    return None


def download_images(
    records: list[dict[str, Any]], params: DownloadParams, *, crawl: Path, work: Path, store: Store
) -> DownloadResult:
    """Store the images of `records` (rows of IMAGE_RECORDS) in shards, in that order.

    Fetched images are kept below `work`, from where a killed run goes on. Drop reasons: those of `fetch_all`,
    `not_in_crawl`, `damaged_warc`, `unreadable_file`, `too_large`, `not_an_image`, `duplicate_bytes` (the witness has
    the same bytes, so the same id).
    Raises InputError if a WARC file is gone or more than `max_dropped_share` are dropped.
    """
    from dinov2.curation.fetch import FetchLog, fetch_all  # imported in the job, not in the submitter

    log = FetchLog(work / "fetched")
    remote = [record["url"] for record in records if _is_remote(record)]
    if params.network:
        fetch_all(remote, params, log)
    removed: list[dict[str, Any]] = []
    stored: set[str] = set()
    num_bytes = 0
    with ShardWriter(store, work / "shards", shard_mb=params.shard_mb) as writer:
        for record in logged(records, total=len(records), what="download: images stored", logger=logger):
            data = _read(record, params, crawl, log)
            if isinstance(data, str):
                removed.append(_removed(record, data, None))
                continue
            sample_id = hashlib.sha256(data).hexdigest()
            if sample_id in stored:
                removed.append(_removed(record, "duplicate_bytes", sample_id))
                continue
            stored.add(sample_id)
            num_bytes += len(data)
            about = {key: record[key] for key in ("url", "page_url", "alt")}
            writer.add(data, {**about, "mime": sniff_mime(data[:16]), "width": None, "height": None, "label": None})
    _check_share(removed, len(records), params)
    metrics = {"asked_over_http": len(remote) * params.network, "stored_mb": num_bytes / 1e6}
    return DownloadResult(writer.rows, removed, {key: float(value) for key, value in metrics.items()})


def _is_remote(record: Mapping[str, Any]) -> bool:
    return record["warc"] is None and not record["url"].startswith("file:")


def _read(record: Mapping[str, Any], params: DownloadParams, crawl: Path, log: "FetchLog") -> bytes | str:
    """The bytes of a record's image, or the reason why there are none."""
    try:
        if record["warc"] is not None:
            data = _read_warc(record, params, crawl)
        elif record["url"].startswith("file:"):
            data = _read_file(local_path(record["url"], crawl), params)
        elif params.network:
            data = log.read(record["url"])
        else:
            return "not_in_crawl"
    except NoImageError as error:
        return error.reason
    except DamagedWarcError as error:
        logger.warning("%s at %d of %s: %s", record["url"], record["warc_offset"], record["warc"], error)
        return "damaged_warc"
    except OSError:
        return "unreadable_file"
    if len(data) > params.max_bytes:
        return "too_large"
    return data if sniff_mime(data[:16]) else "not_an_image"


def _read_warc(record: Mapping[str, Any], params: DownloadParams, crawl: Path) -> bytes:
    path = crawl / record["warc"]
    try:
        url, status, data = read_answer(path, record["warc_offset"], max_bytes=params.max_bytes)
        if canonical(url) != record["url"]:
            raise DamagedWarcError(f"the answer there is of {url[:200]}")
    except FileNotFoundError as error:
        raise InputError(f"{path} is gone since the crawl was read; put it back, or run crawl again") from error
    except UrlRefusedError as error:
        raise DamagedWarcError("the answer there has no usable URL") from error
    if status != 200:
        raise NoImageError("bad_status")
    return data


def _read_file(path: Path, params: DownloadParams) -> bytes:
    if not path.is_file():  # a pipe would be waited for without end
        raise FileNotFoundError(path)
    with path.open("rb") as stream:
        return stream.read(params.max_bytes + 1)


def _removed(record: Mapping[str, Any], reason: str, sample_id: str | None) -> dict[str, Any]:
    return {"id": sample_id, "url": record["url"], "reason": reason, "witness_id": sample_id, "cosine": None}


def _check_share(removed: list[dict[str, Any]], num_records: int, params: DownloadParams) -> None:
    """Raise InputError if too many images could not be had; copies are no failure."""
    failed = [row["reason"] for row in removed if row["reason"] != "duplicate_bytes"]
    if num_records and len(failed) / num_records > params.max_dropped_share:
        most = max(sorted(set(failed)), key=failed.count)
        raise InputError(
            f"{len(failed)} of {num_records} images can't be had, most of them {most}; mend the crawl or the network, "
            f"or raise download.max_dropped_share ({params.max_dropped_share})"
        )
