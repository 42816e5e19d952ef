"""WAT records: the metadata of a page as Common Crawl and the Internet Archive extract it, in JSON, instead of HTML.

Attributes come as separate links (`IMG@/src`, `IMG@/srcset`, ...), and which element each was on is not said: a
`srcset` or lazy attribute right after a `src` is taken for the same `<img>`, and `SOURCE@/srcset` for the next one.
"""

import json
from typing import Any, NamedTuple

from dinov2.curation.crawl.pages import Image, Page, image_of


class WatPage(NamedTuple):
    """A page that a WAT record describes."""

    url: str
    """As written."""
    headers: list[tuple[str, str]]
    page: Page


def read_wat_record(data: bytes) -> WatPage | None:
    """The page that a WAT record describes; None if it describes something else. Raises ValueError for junk."""
    try:
        envelope = _get(json.loads(data), "Envelope")
    except RecursionError as error:
        raise ValueError("nested too deep") from error
    about = _get(envelope, "WARC-Header-Metadata")
    answer = _get(envelope, "Payload-Metadata", "HTTP-Response-Metadata")
    url = about.get("WARC-Target-URI")
    is_page = about.get("WARC-Type") == "response" and "HTML-Metadata" in answer
    if not is_page or not isinstance(url, str) or str(_get(answer, "Response-Message").get("Status")) != "200":
        return None
    head = _get(answer, "HTML-Metadata", "Head")
    base = head.get("Base")
    metas = [(_text(meta, "name"), _text(meta, "content")) for meta in _dicts(head.get("Metas"))]
    images = _images(_dicts(_get(answer, "HTML-Metadata").get("Links")))
    headers = [(name, str(value)) for name, values in _get(answer, "Headers").items() for value in _list(values)]
    return WatPage(url, headers, Page(base if isinstance(base, str) else None, metas, images))


def _images(links: list[dict[str, Any]]) -> list[Image]:
    images: list[Image] = []
    sources: list[str] = []
    attributes: dict[str, str] = {}
    for link in [*links, {"path": "IMG@/src"}]:  # a last one, which ends the one before it
        element, _, attribute = _text(link, "path").lower().partition("@/")
        value = _text(link, "url") or _text(link, attribute)
        if attributes and (element != "img" or attribute == "src" or attribute in attributes):
            images.append(image_of(attributes, sources))
            attributes, sources = {}, []
        if element == "img" and (value or attribute == "src"):
            attributes |= {attribute: value, "alt": attributes.get("alt") or _text(link, "alt")}
        elif element == "source" and attribute == "srcset":
            sources.append(value)
    return images


def _get(value: Any, *keys: str) -> dict[str, Any]:
    """The object below `keys`; an empty one where there is none."""
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value if isinstance(value, dict) else {}


def _text(value: dict[str, Any], key: str) -> str:
    text = value.get(key)
    return text.encode("utf-8", "replace").decode() if isinstance(text, str) else ""  # JSON may hold half a character


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _dicts(value: Any) -> list[dict[str, Any]]:
    return [item for item in _list(value) if isinstance(item, dict)]
