"""WARC files: every answer in one file, in order, one answer at its offset, and the metadata records of WAT files.

The crawl reads whole files to find pages; the download then reads single images at the offsets that the crawl noted. A
file that is cut short gives all that came before the cut.
"""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from dinov2.curation.crawl.optout import MAX_TDMREP_BYTES, TDMREP_PATH
from dinov2.curation.crawl.robots import MAX_ROBOTS_BYTES, ROBOTS_PATH
from dinov2.curation.crawl.sitemaps import MAX_SITEMAP_BYTES
from dinov2.curation.crawl.urls import path_and_query

if TYPE_CHECKING:
    from warcio.recordloader import ArcWarcRecord

XML_TYPES = ("application/xml", "text/xml")
_HTML_TYPES = ("text/html", "application/xhtml+xml")
_CHUNK_BYTES = 1 << 16
_CHARSET = re.compile(r"charset\s*=\s*[\"']?\s*([\w.:-]{1,40})", re.IGNORECASE)

T = TypeVar("T")


class DamagedWarcError(Exception):
    """A WARC file, or the record at an offset, that can't be read (further)."""


class WarcEntry(NamedTuple):
    """One answer; its body only where it may tell of images or of opt-outs, its charset only with a body."""

    url: str
    """As written in the file."""
    offset: int
    """Bytes from the start of the file."""
    status: int
    mime: str
    headers: list[tuple[str, str]]
    body: bytes | None
    charset: str | None
    is_cut: bool
    """Whether who wrote the file cut the body short, and says so (WARC-Truncated)."""
    is_encoded: bool
    """Whether its Content-Encoding is one that is not decoded here; it then has no body."""

    @property
    def settles(self) -> bool:
        """Whether asking the server again would be of no use: a body, or a lasting refusal."""
        if self.status == 200:
            return not self.is_cut and not self.is_encoded
        return 400 <= self.status < 500 and self.status != 429


def read_entries(path: Path, *, max_page_bytes: int) -> Iterator[WarcEntry]:
    """Answers in a WARC file, in order; of HTML and XML at most `max_page_bytes` + 1 bytes are read.

    Raises DamagedWarcError, after all complete records, if the file is cut short or corrupt.
    """

    def read(record: "ArcWarcRecord", offset: int) -> WarcEntry | None:
        status, url = _status(record), record.rec_headers.get_header("WARC-Target-URI")
        if not status:
            return None
        mime = _content_type(record).partition(";")[0].strip()
        is_encoded = _is_encoded(record)
        limit = _max_bytes(url, mime, max_page_bytes) if status == 200 and not is_encoded else 0
        body = record.content_stream().read(limit + 1) if limit else None
        headers = record.http_headers.headers if record.http_headers else []
        is_cut = record.rec_headers.get_header("WARC-Truncated") is not None
        charset = _charset(record) if limit else None
        return WarcEntry(url, offset, status, mime, headers, body, charset, is_cut, is_encoded)

    return _read_all(path, read)


def read_metadata(path: Path, *, max_bytes: int) -> Iterator[bytes]:
    """Contents of the metadata records of a WAT file, at most `max_bytes` + 1 bytes of each; raises as read_entries."""

    def read(record: "ArcWarcRecord", _: int) -> bytes | None:
        return record.content_stream().read(max_bytes + 1) if record.rec_type == "metadata" else None

    return _read_all(path, read)


def read_answer(path: Path, offset: int, *, max_bytes: int) -> tuple[str, int, bytes]:
    """URL as written, status and body, no more than `max_bytes` + 1 bytes of it, of the answer at `offset` of a file.

    Raises DamagedWarcError if no complete answer stands there, FileNotFoundError if the file is gone.
    """
    from warcio.archiveiterator import ArchiveIterator

    with path.open("rb") as stream:
        stream.seek(offset)
        try:
            record = next(ArchiveIterator(stream, verify_http=False))
            body = record.content_stream().read(max_bytes + 1)
            if len(body) <= max_bytes:
                _drain(record)
            return record.rec_headers.get_header("WARC-Target-URI") or "", _status(record), body
        except DamagedWarcError:
            raise
        except (Exception, StopIteration) as error:
            raise DamagedWarcError(f"{type(error).__name__}: {error}") from error


def _read_all(path: Path, read: Callable[["ArcWarcRecord", int], T | None]) -> Iterator[T]:
    """What `read` makes of each record and its offset, where that is something and the record is complete."""
    from warcio.archiveiterator import ArchiveIterator

    with path.open("rb") as stream:
        try:
            iterator = ArchiveIterator(stream, verify_http=False)
            for record in iterator:
                found = read(record, iterator.offset)
                _drain(record)
                if found is not None:
                    yield found
            end_of_last = sum(iterator.member_info or (0, 0))
        except DamagedWarcError:
            raise
        except Exception as error:  # warcio lets many kinds out of damaged input
            raise DamagedWarcError(f"{type(error).__name__}: {error}") from error
    with path.open("rb") as stream:
        stream.seek(end_of_last)
        if stream.read(_CHUNK_BYTES).strip(b"\0\r\n "):
            raise DamagedWarcError(f"no record begins at byte {end_of_last}, and the file goes on there")


def _status(record: "ArcWarcRecord") -> int:
    """HTTP status of a response, 200 of a resource, 0 of what is no answer of a server."""
    if record.rec_headers.get_header("WARC-Target-URI") is None:
        return 0
    if record.rec_type == "response" and record.http_headers is not None:
        code = record.http_headers.get_statuscode()
        return int(code) if re.fullmatch("[1-9][0-9]{2}", code) else 0
    return 200 if record.rec_type == "resource" else 0


def _max_bytes(url: str, mime: str, max_page_bytes: int) -> int:
    """How much of an answer is read: of what tells neither of images nor of opt-outs nothing."""
    try:
        path = path_and_query(url)
    except ValueError:
        path = ""
    of_sites = {ROBOTS_PATH: MAX_ROBOTS_BYTES, TDMREP_PATH: MAX_TDMREP_BYTES}
    if path in of_sites or mime not in XML_TYPES:
        return of_sites.get(path, max_page_bytes if mime in _HTML_TYPES else 0)
    return MAX_SITEMAP_BYTES


def _content_type(record: "ArcWarcRecord") -> str:
    headers = record.http_headers or record.rec_headers
    return (headers.get_header("Content-Type") or "").strip().lower()


def _is_encoded(record: "ArcWarcRecord") -> bool:
    """Whether the body can't be decoded: it is read as it is then."""
    from warcio.bufferedreaders import BufferedReader

    encoding = (record.http_headers.get_header("Content-Encoding") or "") if record.http_headers else ""
    return encoding.strip().lower() not in ("", "identity", *BufferedReader.get_supported_decompressors())


def _charset(record: "ArcWarcRecord") -> str | None:
    match = _CHARSET.search(_content_type(record))
    return match.group(1) if match else None


def _drain(record: "ArcWarcRecord") -> None:
    """Read a record to its end; raises DamagedWarcError if the file ends before the record does."""
    if not (record.rec_headers.get_header("Content-Length") or "").strip().isdigit():
        raise DamagedWarcError("a record without Content-Length")
    while record.raw_stream.read(_CHUNK_BYTES):
        pass
    if record.raw_stream.limit > 0:
        raise DamagedWarcError(f"the last record lacks {record.raw_stream.limit} bytes")
