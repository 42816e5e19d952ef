"""Sitemaps (sitemaps.org, with Google's image extension) and plain lists of image URLs.

A sitemap is read as far as it is well formed. It must not declare entities, nor any document type: so none can grow.
"""

import gzip
import zlib
from collections.abc import Iterator
from io import BufferedIOBase
from pathlib import Path
from typing import NamedTuple
from xml.parsers import expat

from dinov2.curation.crawl.pages import Image

MAX_SITEMAP_BYTES = 50 << 20  # the protocol's limit, uncompressed
MAX_LINE_BYTES = 1 << 20
MAX_DEPTH = 32
_CHUNK_BYTES = 1 << 16


class DamagedSitemapError(Exception):
    """XML that can't be read (further)."""


class Sitemap(NamedTuple):
    """What a sitemap says: (page as written, image) in order; pages that name no image; sitemaps that it names."""

    images: list[tuple[str, Image]]
    num_pages: int
    num_sitemaps: int


class SitemapParser:
    """Reads one sitemap; what came before any damage is in `sitemap`. XML of another kind gives nothing."""

    def __init__(self) -> None:
        self._path: list[str] = []
        self._text: list[str] = []
        self._page = ""
        self._image: dict[str, str] = {}
        self._images_of_page: list[Image] = []
        self._images: list[tuple[str, Image]] = []
        self._num_pages = self._num_sitemaps = 0
        self.damage = ""
        """Why it can't be read further; empty where it was read to its end."""
        self.is_sitemap = False
        """Whether its outermost element is one of sitemaps."""
        self._parser = expat.ParserCreate()
        self._parser.buffer_text = True
        self._parser.StartDoctypeDeclHandler = _refuse_doctype
        self._parser.StartElementHandler = self._start
        self._parser.EndElementHandler = self._end
        self._parser.CharacterDataHandler = self._text.append

    def read(self, data: bytes) -> None:
        """Read a sitemap as far as it is well formed."""
        try:
            self._parser.Parse(data, True)
        except (DamagedSitemapError, expat.ExpatError, LookupError, ValueError) as error:
            self.damage = str(error)

    @property
    def sitemap(self) -> Sitemap:
        """What was read."""
        return Sitemap(self._images, self._num_pages, self._num_sitemaps)

    def _start(self, name: str, _: dict[str, str]) -> None:
        if len(self._path) == MAX_DEPTH:
            raise DamagedSitemapError("elements nested too deep")
        self._path.append(name.rpartition(":")[2])
        self.is_sitemap = self.is_sitemap or self._path in (["urlset"], ["sitemapindex"])
        self._text.clear()

    def _end(self, _: str) -> None:
        match self._path:
            case ["urlset", "url", "image", field]:
                self._image[field] = "".join(self._text)
            case ["urlset", "url", "image"]:
                text = self._image.get("caption") or self._image.get("title", "")
                location = self._image.get("loc", "").strip()
                self._images_of_page.append(Image([location] if location else [], " ".join(text.split())))
                self._image = {}
            case ["urlset", "url", "loc"]:
                self._page = "".join(self._text).strip()
            case ["urlset", "url"]:  # `loc` may follow the images
                self._images += [(self._page, image) for image in self._images_of_page]
                self._num_pages += 1
                self._page, self._images_of_page = "", []
            case ["sitemapindex", "sitemap"]:
                self._num_sitemaps += 1
        self._path.pop()
        self._text.clear()


def read_sitemap_file(path: Path) -> tuple[bytes, bool]:
    """The content of a sitemap's file, as far as it can be had, and whether it is damaged or too large."""
    parts: list[bytes] = []
    size = 0
    with _open(path) as stream:
        try:
            while size <= MAX_SITEMAP_BYTES and (part := stream.read1(_CHUNK_BYTES)):
                parts.append(part)
                size += len(part)
        except (EOFError, OSError, zlib.error):
            return b"".join(parts)[:MAX_SITEMAP_BYTES], True
    return b"".join(parts)[:MAX_SITEMAP_BYTES], size > MAX_SITEMAP_BYTES


def read_list(path: Path) -> Iterator[str]:
    """The URLs of a list, one a line; empty lines and those that begin with `#` are passed over.

    Raises DamagedSitemapError, after the lines before it, where the file can't be read further.
    """
    is_new = True
    with _open(path) as stream:
        try:
            while line := stream.readline(MAX_LINE_BYTES):
                text = line.decode("utf-8-sig", errors="replace").strip()
                if is_new and text and not text.startswith("#"):
                    yield text
                is_new = line.endswith(b"\n")  # what follows in a line that is too long is passed over
        except (EOFError, OSError, zlib.error) as error:
            raise DamagedSitemapError(str(error)) from error


def _open(path: Path) -> BufferedIOBase:
    """A file's bytes, decompressed if it is named so."""
    return gzip.GzipFile(path) if path.name.lower().endswith(".gz") else path.open("rb")


def _refuse_doctype(*_: object) -> None:
    raise DamagedSitemapError("a document type, which sitemaps have none of")
