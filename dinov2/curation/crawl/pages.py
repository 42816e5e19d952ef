"""What a page says of images: every `<img>` with its candidates, the base of its links, and its `<meta>` elements.

An `<img>`, with the `<source>`s before it in its `<picture>`, is one image in several sizes. Its candidates come
largest first: those of `srcset`s, then what lazy-loading scripts would put in place of `src`, then `src`; then `data:`
URIs, which mostly are placeholders; and last what can hardly be had: templates for scripts to fill, and `<source>`s of
a type that is not kept.
"""

import codecs
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from dinov2.curation.crawl.markup import read_tags
from dinov2.curation.crawl.urls import srcset_candidates

# Where common lazy-loading scripts keep what they put into `src` and `srcset`.
LAZY_SRC = (
    "data-src", "data-lazy-src", "data-lazy", "data-original", "data-original-src", "data-echo", "data-ll-src",
    "data-img-src", "data-hi-res-src", "lazy-src", "lazysrc",
)  # fmt: skip
SRCSET = ("srcset", "data-srcset", "data-lazy-srcset", "data-original-set", "lazy-srcset")
KEPT_TYPES = ("image/jpeg", "image/jpg", "image/pjpeg", "image/png", "image/gif", "image/webp", "image/avif")
MAX_ALT_CHARS = 10_000
# Python text codecs that are no encodings of web pages, some of them quadratic.
_NOT_OF_THE_WEB = {"idna", "punycode", "undefined", "unicode_escape", "raw_unicode_escape", "utf-7"}
_TEMPLATE = re.compile(r"[{}]|%7[bd]|<%", re.IGNORECASE)  # {width}, {{ image }}, ${x}, <%= x %>
_META_CHARSET = re.compile(rb"<meta[^>]{0,200}charset\s*=\s*[\"']?\s*([\w.:-]{1,40})", re.IGNORECASE)


class Image(NamedTuple):
    """What an `<img>` says: references as written, the best first (none without src and srcset), and its text."""

    references: list[str]
    alt: str


class Page(NamedTuple):
    """What a page says: its `<base href>` or None, (name, content) of its `<meta>`s, images in document order."""

    base: str | None
    metas: list[tuple[str, str]]
    images: list[Image]


def read_page(text: str) -> Page:
    """Base, metas and images of a page in HTML."""
    page = Page(None, [], [])
    base: str | None = None
    sources: list[str] = []
    others: list[str] = []
    in_picture = False
    for name, attributes in read_tags(text):
        if name == "img":
            page.images.append(image_of(attributes, sources, others))
            sources, others = [], []
        elif name == "source" and in_picture:
            kind = attributes.get("type", "").partition(";")[0].strip().lower()
            found = sources if kind in ("", *KEPT_TYPES) else others
            found += [attributes[key] for key in SRCSET if key in attributes]
        elif name in ("picture", "/picture"):
            in_picture, sources, others = name == "picture", [], []
        elif name == "base" and base is None:
            base = attributes.get("href")
        elif name == "meta" and "name" in attributes:
            page.metas.append((attributes["name"], attributes.get("content", "")))
    return page._replace(base=base)


def image_of(attributes: dict[str, str], sources: list[str], others: Sequence[str] = ()) -> Image:
    """The image of an `<img>` with `attributes`, in a `<picture>` with the `srcset`s `sources`; `others` not kept."""
    references = _largest_first([*sources, *(attributes.get(key, "") for key in SRCSET)])
    lazy = [attributes.get(key, "").strip() for key in LAZY_SRC]
    references += [url for url in lazy if "/" in url or "." in url]  # others are numbers and names for scripts
    references.append(attributes.get("src", "").strip())
    references.sort(key=_hopelessness)
    alt = " ".join(attributes.get("alt", "")[:MAX_ALT_CHARS].split())
    return Image([url for url in dict.fromkeys([*references, *_largest_first(others)]) if url], alt)


def _largest_first(srcsets: Iterable[str]) -> list[str]:
    candidates = [candidate for srcset in srcsets for candidate in srcset_candidates(srcset)]
    return [url for _, _, url in sorted(candidates, key=lambda candidate: candidate[:2], reverse=True)]


def _hopelessness(url: str) -> int:
    if url[:5].lower() == "data:":
        return 1
    return 2 if _TEMPLATE.search(url) else 0


def decode_html(data: bytes, charset: str | None) -> str:
    """Text of a page: by byte order mark, the server's charset, `<meta>`, UTF-8, or else windows-1252 (as browsers)."""
    if data.startswith(codecs.BOM_UTF8):
        return data.decode("utf-8-sig", errors="replace")
    meta = _META_CHARSET.search(data[:2048])
    for name in (charset, meta.group(1).decode("ascii", "replace") if meta else None):
        if name:
            try:
                encoding = codecs.lookup(name).name.replace("-", "_")
                if encoding not in _NOT_OF_THE_WEB:
                    return data.decode("cp1252" if encoding in ("iso8859_1", "ascii") else encoding, errors="replace")
            except (LookupError, ValueError):
                continue
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return data.decode("cp1252", errors="replace")
