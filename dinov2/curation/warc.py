"""WARC files: every answer in one file, in order, and one answer at its offset.

The crawl reads whole files to find pages; the download then reads single images at the offsets that the crawl noted. A
file that is cut short gives all that came before the cut.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from warcio.recordloader import ArcWarcRecord

_HTML_TYPES = ("text/html", "application/xhtml+xml")
_CHUNK_BYTES = 1 << 16
_CHARSET = re.compile(r"charset\s*=\s*[\"']?\s*([\w.:-]{1,40})", re.IGNORECASE)


class DamagedWarcError(Exception):
    """A WARC file, or the record at an offset, that can't be read (further)."""


class WarcEntry(NamedTuple):
    """One complete answer that settles its URL (see `_settles`); body and charset only of HTML with status 200."""

    url: str
    """As written in the file."""
    offset: int
    """Bytes from the start of the file."""
    status: int
    html: bytes | None
    charset: str | None


def read_entries(path: Path, *, max_html_bytes: int) -> Iterator[WarcEntry]:
    """Answers in a WARC file that settle their URLs, in order; of HTML at most `max_html_bytes` + 1 bytes are read.

    Raises DamagedWarcError, after all complete records, if the file is cut short or corrupt.
    """
    from warcio.archiveiterator import ArchiveIterator

    with path.open("rb") as stream:
        try:
            iterator = ArchiveIterator(stream, verify_http=False)
            for record in iterator:
                offset = iterator.offset
                html, charset = None, None
                status = _status(record)
                if status == 200 and _is_html(record):
                    html = record.content_stream().read(max_html_bytes + 1)
                    charset = _charset(record)
                _drain(record)
                if _settles(status):
                    yield WarcEntry(record.rec_headers.get_header("WARC-Target-URI"), offset, status, html, charset)
            end_of_last = sum(iterator.member_info or (0, 0))
        except DamagedWarcError:
            raise
        except Exception as error:  # warcio lets many kinds out of damaged input
            raise DamagedWarcError(f"{type(error).__name__}: {error}") from error
    with path.open("rb") as stream:
        stream.seek(end_of_last)
        if stream.read(_CHUNK_BYTES).strip(b"\0\r\n "):
            raise DamagedWarcError(f"no record begins at byte {end_of_last}, and the file goes on there")


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


def _status(record: "ArcWarcRecord") -> int:
    """HTTP status of a response, 200 of a resource, 0 of what is no answer of a server."""
    if record.rec_headers.get_header("WARC-Target-URI") is None:
        return 0
    if record.rec_type == "response" and record.http_headers is not None:
        code = record.http_headers.get_statuscode()
        return int(code) if code.isdigit() else 0
    return 200 if record.rec_type == "resource" else 0


def _settles(status: int) -> bool:
    """Whether asking the server again would be of no use: a body, or a lasting refusal."""
    return status == 200 or (400 <= status < 500 and status != 429)


def _content_type(record: "ArcWarcRecord") -> str:
    headers = record.http_headers or record.rec_headers
    return (headers.get_header("Content-Type") or "").strip().lower()


def _is_html(record: "ArcWarcRecord") -> bool:
    return _content_type(record).startswith(_HTML_TYPES)


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
