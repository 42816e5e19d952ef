"""HTML pages that show images in the ways the web does, and the WARC files that hold pages and images.

Two builds of the same resources give the same bytes: dates are fixed, record ids come from hashes, gzip headers have
no time.
"""

import gzip
import hashlib
import html
import posixpath
import random
import uuid
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from warcio.statusandheaders import StatusAndHeaders
from warcio.warcwriter import WARCWriter

from demo.planted import DEAD_SITE, FORBIDDEN_SITES, NUM_PSEUDO_LINKS, PSEUDO_LINKS, SITES, Resource

WARC_DATE = "2024-01-01T00:00:00Z"
IMAGES_A_PAGE = 7.5
NUM_WARCS = 2
LATIN_SITE = "garden.example"  # its pages are ISO-8859-1
GZIP_SITE = "blog.example"  # its pages are sent compressed
WORDS = ("light", "stone", "river", "morning", "market", "window", "garden", "winter", "letter", "harbour", "paper")


class Page(NamedTuple):
    """A web page as its server sent it."""

    url: str
    content_type: str
    content: bytes  # before any Content-Encoding
    resources: list[Resource]


def write_crawl(resources: Sequence[Resource], folder: Path) -> int:
    """Write pages that link to every resource, and the resources, as WARC files; returns the number of pages."""
    pages = make_pages(resources)
    folder.mkdir(parents=True, exist_ok=True)
    written: set[str] = set()
    for number in range(NUM_WARCS):
        first, last = (len(pages) * i // NUM_WARCS for i in (number, number + 1))
        path = folder / f"crawl-{number:05d}.warc.gz"
        with path.open("wb") as stream:
            writer = WARCWriter(stream, gzip=True)
            _write_warcinfo(writer, path.name)
            for page in pages[first:last]:
                _write_page(writer, page)
                for resource in page.resources:
                    if resource.content is not None and resource.url not in written:
                        written.add(resource.url)
                        headers = [("Content-Type", resource.mime)]
                        _write_response(writer, resource.url, resource.read(), headers, status=resource.status)
    return len(pages)


def make_pages(resources: Sequence[Resource]) -> list[Page]:
    """Pages of all sites; every resource is on at least one."""
    rng = random.Random("pages")
    num_pages = max(2, round(len(resources) / IMAGES_A_PAGE))
    on_page: list[list[Resource]] = [[] for _ in range(num_pages)]
    by_url = {resource.url: resource for resource in resources}
    for resource in resources:
        site = _site_of(resource.url)
        if site in SITES and rng.random() < 0.75:  # at home: pages of this site are every len(SITES)-th one
            own = range(SITES.index(site), num_pages, len(SITES))
            page = rng.choice(own) if own else rng.randrange(num_pages)
        else:
            page = rng.randrange(num_pages)
        on_page[page].append(resource)
    for _ in range(len(resources) // 50):  # the same URL on a second page
        on_page[rng.randrange(num_pages)].append(rng.choice(resources))
    pseudo = [rng.choice(PSEUDO_LINKS) for _ in range(min(NUM_PSEUDO_LINKS, num_pages))]
    pseudo_of = dict(zip(rng.sample(range(num_pages), len(pseudo)), pseudo, strict=True))
    return [_make_page(i, on_page[i], pseudo_of.get(i), by_url, rng) for i in range(num_pages)]


def _make_page(
    number: int, resources: list[Resource], pseudo: str | None, by_url: dict[str, Resource], rng: random.Random
) -> Page:
    site = SITES[number % len(SITES)]
    url = f"https://{site}/{rng.choice(('2023/11', 'stories', 'archive/a'))}/{number:04d}.html"
    base = None
    if number % 5 == 4:  # a base element: images of that host and folder are written relative to it
        base = f"https://cdn.{site}/media/2023/"
    parts = [_image_tag(resource, url, base, by_url, rng) for resource in resources]
    if pseudo is not None:
        parts.append(f'<img src="{pseudo}" alt="">')
    parts.append('<!-- <img src="/commented/out.jpg"> -->')
    body = "\n".join(f"<p>{' '.join(rng.choices(WORDS, k=rng.randint(8, 30)))}.\n<figure>{part}" for part in parts)
    title = " ".join(rng.choices(WORDS, k=3)).capitalize()
    charset = "iso-8859-1" if site == LATIN_SITE else "utf-8"
    head = f'<meta charset="{charset}"><title>{title}</title>' + (f'<base href="{base}">' if base else "")
    text = f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body><h1>{title}</h1>\n{body}\n</body></html>\n'
    return Page(url, f"text/html; charset={charset}", text.encode(charset, errors="xmlcharrefreplace"), resources)


def _image_tag(
    resource: Resource, page_url: str, base: str | None, by_url: dict[str, Resource], rng: random.Random
) -> str:
    """An <img> by src, by src and srcset, or by srcset alone."""
    link = html.escape(_link(resource.url, page_url, base, rng))
    alt = html.escape(resource.alt)
    original = by_url.get(resource.original or "")
    in_srcset = {"thumbnail": 0.5, "copy_resized": 0.2}.get(resource.kind, 0.0)
    if original is not None and rng.random() < in_srcset:
        larger = html.escape(_link(original.url, page_url, base, rng))
        widths = ("1x", "2x") if resource.kind == "thumbnail" else ("480w", "800w")
        return f'<img src="{link}" srcset="{link} {widths[0]}, {larger} {widths[1]}" alt="{alt}">'
    style = rng.random()
    if style < 0.04:
        return f'<img srcset="{link} 1x" alt="{alt}">'
    if style < 0.10:
        return f"<IMG ALT='{alt}' SRC='{link}' loading=lazy>"
    if style < 0.13 and "?" not in link:
        return f"<img src={link}>"
    return f'<img src="{link}" alt="{alt}" width="{rng.randint(100, 640)}">'


def _link(url: str, page_url: str, base: str | None, rng: random.Random) -> str:
    """`url` as a page would write it: absolute, without scheme, from the root, or relative."""
    if base is not None:
        if url.startswith(base):
            return url.removeprefix(base)
        return url
    image, page = urlsplit(url), urlsplit(page_url)
    if image.netloc != page.netloc:
        return url if rng.random() < 0.6 else url.removeprefix("https:")
    from_root = url.removeprefix(f"https://{image.netloc}")
    if rng.random() < 0.3:
        return from_root
    return posixpath.relpath(from_root, posixpath.dirname(page.path))


def _site_of(url: str) -> str:
    host = urlsplit(url).netloc.removeprefix("cdn.")
    assert host in (*SITES, *FORBIDDEN_SITES, DEAD_SITE), host
    return host


def _write_page(writer: WARCWriter, page: Page) -> None:
    headers = [("Content-Type", page.content_type)]
    content = page.content
    if _site_of(page.url) == GZIP_SITE:
        headers.append(("Content-Encoding", "gzip"))
        content = gzip.compress(content, mtime=0)
    _write_response(writer, page.url, content, headers, status=200)


def _write_response(
    writer: WARCWriter, url: str, content: bytes, headers: list[tuple[str, str]], *, status: int
) -> None:
    reason = "OK" if status == 200 else "Not Found"
    http = StatusAndHeaders(
        f"{status} {reason}", [*headers, ("Content-Length", str(len(content)))], protocol="HTTP/1.1"
    )
    writer.write_record(
        writer.create_warc_record(
            url,
            "response",
            payload=BytesIO(content),
            length=len(content),
            http_headers=http,
            warc_headers_dict=_identity(url, content),
        )
    )


def _write_warcinfo(writer: WARCWriter, name: str) -> None:
    about = b"software: python -m demo build\r\nformat: WARC File Format 1.1\r\n"
    writer.write_record(
        writer.create_warc_record(
            "",
            "warcinfo",
            payload=BytesIO(about),
            length=len(about),
            warc_headers_dict={**_identity(name, about), "WARC-Filename": name},
        )
    )


def _identity(url: str, content: bytes) -> dict[str, str]:
    digest = hashlib.sha256(url.encode() + b"\n" + content).hexdigest()
    return {"WARC-Record-ID": f"<urn:uuid:{uuid.UUID(digest[:32])}>", "WARC-Date": WARC_DATE}
