"""What is fuzzed: for each parser odd input, and what must hold of whatever comes out.

The test suite tries a few hundred inputs of each (test_fuzz.py), `benchmarks/fuzz_parsers.py` as many as time allows.
To add a parser, append a Target: its check raises for a fault and returns for everything that is allowed.
"""

import contextlib
import gzip
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from crawls import HTML, OPT_OUT, Answer, crawl, write_warc
from hypothesis import HealthCheck
from hypothesis import strategies as st

from dinov2.curation.crawl.markup import decode_references, read_tags
from dinov2.curation.crawl.optout import header_directives, headers_opt_out, matches, meta_opt_out, parse_tdmrep
from dinov2.curation.crawl.pages import decode_html, read_page
from dinov2.curation.crawl.robots import Robots
from dinov2.curation.crawl.sitemaps import DamagedSitemapError, SitemapParser, read_list, read_sitemap_file
from dinov2.curation.crawl.urls import (
    UrlRefusedError,
    canonical,
    canonical_data_uri,
    decode_data_uri,
    resolve,
    shown,
    srcset_candidates,
)
from dinov2.curation.crawl.warc import DamagedWarcError, read_answer, read_entries, read_metadata
from dinov2.curation.crawl.wat import read_wat_record

AGENT = "pipeline-bot/1"
UNASKED = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]


class Target(NamedTuple):
    """A parser under test."""

    name: str
    inputs: st.SearchStrategy[Any]
    check: Callable[[Any], None]


def pieces(*parts: str, max_size: int = 40) -> st.SearchStrategy[str]:
    """Text made of `parts` and of anything."""
    return st.lists(st.sampled_from(parts) | st.text(max_size=4), max_size=max_size).map("".join)


def mutations(whole: bytes) -> st.SearchStrategy[bytes]:
    """`whole`, cut, with bytes changed and pieces moved."""
    places = st.integers(0, len(whole))
    edits = st.lists(st.tuples(places, places, st.binary(max_size=6) | st.tuples(places, places)), max_size=4)

    def apply(edits: list[tuple[int, int, bytes | tuple[int, int]]]) -> bytes:
        data = whole
        for start, length, new in edits:
            put = new if isinstance(new, bytes) else whole[new[0] : new[0] + new[1] % 64]
            data = data[:start] + put + data[start + length % 16 :]
        return data

    return st.tuples(edits, places).map(lambda pair: apply(pair[0])[: pair[1] or None])


def check_page(text: str) -> None:
    """The tags are those of a browser's parser, and a page is read from them."""
    from selectolax.lexbor import LexborHTMLParser

    read_page(text).base  # noqa: B018 (it must not raise)
    if text.lower().count("<script") > 1 and "<!--" in text:
        return  # where ours is simpler: see markup.py
    expected = [
        (str(node.tag), {name: value or "" for name, value in node.attributes.items()})
        for node in LexborHTMLParser(text).css("img, source, base, meta")
    ]
    found = [tag for tag in read_tags(text) if "picture" not in tag.name]
    assert _comparable(found) == _comparable(expected)


def _comparable(tags: list[Any]) -> list[Any]:
    """Line ends, NULs, and capitals outside ASCII (which mean nothing here) in one form."""
    one_form = {ord("\0"): "\ufffd"}
    return [
        (name, {key.translate(one_form).lower(): value.replace("\r\n", "\n").replace("\r", "\n").translate(one_form)
                for key, value in attributes.items()})
        for name, attributes in tags
    ]  # fmt: skip


def check_decoding(pair: tuple[bytes, str | None]) -> None:
    """Bytes of any charset become text that Parquet can hold."""
    decode_references(decode_html(*pair)).encode()


def check_url(pair: tuple[str, str]) -> None:
    """A URL is refused or has one spelling, in ASCII."""
    try:
        url = resolve(pair[0], pair[1])
    except UrlRefusedError:
        return
    assert url.isascii()
    assert canonical(url) == url == resolve(url, pair[1])
    Robots(b"User-agent: *\nDisallow: /*a*b$\n", AGENT).allows(url)


def check_data_uri(uri: str) -> None:
    """A data: URI is refused or keeps type and content in its one spelling."""
    with contextlib.suppress(UrlRefusedError):
        url = canonical_data_uri(uri)
        assert decode_data_uri(url) == decode_data_uri(uri)
        assert canonical_data_uri(url) == url
        assert shown(url).isascii()


def check_srcset(srcset: str) -> None:
    """Candidates are pieces of the text, none empty."""
    for width, density, url in srcset_candidates(srcset):
        assert url
        assert url in srcset
        assert width >= 0
        assert density >= 0


def check_robots(pair: tuple[str, str]) -> None:
    """Any text is rules; the same for bytes that are no text."""
    for data in (pair[0].encode("utf-8", "surrogatepass"), pair[0].encode("utf-16", "surrogatepass")):
        Robots(data, AGENT).allows("http://a.example/" + pair[1])


def check_opt_outs(pair: tuple[str, str]) -> None:
    """Headers, metas, tdmrep.json and patterns never raise."""
    header_directives(pair[0], AGENT)
    headers_opt_out([("X-Robots-Tag", pair[0]), ("TDM-Reservation", pair[1])], OPT_OUT, AGENT)
    meta_opt_out([pair, ("robots", pair[0])], OPT_OUT, AGENT)
    for rule in parse_tdmrep(pair[0].encode("utf-8", "surrogatepass")):
        matches(rule.location, "/" + pair[1])
    matches(pair[0], pair[1])


def check_wat(data: bytes) -> None:
    """Junk is a ValueError; everything else can be written."""
    with contextlib.suppress(ValueError):
        if found := read_wat_record(data):
            json.dumps(found.page)
            for image in found.page.images:
                (image.alt + "".join(image.references)).encode()


def check_sitemap(data: bytes) -> None:
    """What is not well formed is damaged."""
    parser = SitemapParser()
    parser.read(data)
    for page, image in parser.sitemap.images:
        (page + image.alt + "".join(image.references)).encode()


def check_files(data: bytes) -> None:
    """Files of every kind give what can be had, and nothing else than that they are damaged."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "a.gz")
        path.write_bytes(data)
        with contextlib.suppress(DamagedWarcError):
            list(read_entries(path, max_page_bytes=1000))
        with contextlib.suppress(DamagedWarcError):
            list(read_metadata(path, max_bytes=1000))
        with contextlib.suppress(DamagedWarcError):
            read_answer(path, len(data) // 3, max_bytes=1000)
        with contextlib.suppress(DamagedSitemapError):
            list(read_list(path))
        read_sitemap_file(path)


def check_crawl(files: dict[str, bytes]) -> None:
    """A crawl of any files adds up (crawl asserts it)."""
    with tempfile.TemporaryDirectory() as folder:
        for name, data in {**files, "last.html": b"<img src=a>"}.items():
            Path(folder, name).write_bytes(data)
        assert "file:///a" in crawl(Path(folder)).urls


def _warc(suffix: str) -> bytes:
    page = b'<base href="/b/"><img src="a.jpg" srcset="b.jpg 2x, c.jpg 3x" alt="&amp;"><meta name=robots content=all>'
    answers = [
        Answer("http://a.example/", HTML, page),
        Answer("http://a.example/robots.txt", "text/plain", b"User-agent: *\nDisallow: /no\n"),
        Answer("http://a.example/.well-known/tdmrep.json", "application/json", b'[{"location": "/x"}]'),
        Answer("http://a.example/b/c.jpg", "image/jpeg", b"\xff\xd8\xff", headers=[("Content-Encoding", "gzip")]),
        Answer("http://a.example/map.xml", "text/xml", SITEMAP, headers=[("Transfer-Encoding", "chunked")]),
    ]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"a.warc{suffix}")
        write_warc(path, answers)
        return path.read_bytes()


SITEMAP = (
    b'<?xml version="1.0" encoding="UTF-8"?><urlset xmlns:image="i"><url><loc>http://a.example/p</loc><image:image>'
    b"<image:loc>http://a.example/i.jpg</image:loc><image:title>t &lt; u</image:title></image:image></url></urlset>"
)
LINKS = [
    {"path": "IMG@/src", "url": "a.jpg", "alt": "t"},
    {"path": "SOURCE@/srcset", "url": "b 2x"},
    {"path": "IMG@/data-src", "url": "\ud800c.jpg"},
]
PAGE = {"Head": {"Base": "/b/", "Metas": [{"name": "robots", "content": "all"}]}, "Links": LINKS}
ANSWER = {"Response-Message": {"Status": "200"}, "Headers": {"X-Robots-Tag": ["all", "b"]}, "HTML-Metadata": PAGE}
ABOUT = {"WARC-Target-URI": "http://a.example/", "WARC-Type": "response"}
ENVELOPE = {"WARC-Header-Metadata": ABOUT, "Payload-Metadata": {"HTTP-Response-Metadata": ANSWER}}
WAT = json.dumps({"Envelope": ENVELOPE}).encode()
MARKUP = (
    "<", "</", ">", "<img ", "<img/", "src=", "'", '"', "a", " ", "=", "/", "<!--", "-->", "--!>", "<!", "<?",
    "&amp;", "&copy", "&copy=", "&#65;", "&#x41", "<script>", "</script>", "<title>", "</title>", "<template>",
    "</template>", "<source srcset=", "<base href=", "<meta name=robots content=", "\n", "\t", "<p ", "</p>",
    "<textarea>", "</textarea>", "<noscript>", "</noscript>", "<picture>", "alt", "-", "!", ";", "<b>",
    "<IMG SRC=", "<style>", "</style>", "]]>", "<![CDATA[", "&notit;",
)  # fmt: skip
URL = (
    "http:", "https:", "//", "/", "..", "/.", "?", "#", "%", "%2e", "%FF", "@", ":", "a.example", "[::1]", "\\",
    "é", ":80", "xn--", "\ufffd", " ", "\t", ".", "data:", "file:", "🎉", "[", "]",
)  # fmt: skip
DATA_URI = ("data:", "image/png", ";", "base64", ",", "AAAA", "=", "%", "%41", "#", " ", "é", "DATA:", "/", "\ud800")
SRCSET = ("a.jpg", " ", ",", "1x", "200w", "(", ")", "-1x", "1e9w", "data:,", "9" * 400 + "w", "\n", "٣w")
ROBOTS = (
    "User-agent:", "useragent ", "user  agent", "*", "pipeline-bot", "\n", "\r", "Disallow:", "Allow", " ", "/",
    "$", "%", "%2F", "http://[", "Sitemap:", "crawl-delay: nan", "request-rate: 1/0m 0-0", "visit-time:", "#",
    "\u2028", "\x1c", "é",
)  # fmt: skip
DIRECTIVES = ("noai", "none", ":", ",", "pipeline-bot", "unavailable_after", "*", "$", "/", "1", " ")
TDMREP = ("[", "]", "{", "}", '"location"', ":", '"/a*"', ",", '"tdm-reservation"', "1", "null", "1e999", "NaN")
LEAVES = st.none() | st.booleans() | st.integers() | st.text(max_size=5)
JSON = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner))
NAMES = ("a.warc", "b.warc.gz", "c.wat", "d.xml", "e.xml.gz", "f-urls.txt", "g.urls.txt.gz", "h.html")
WARC, WARC_GZ = _warc(""), _warc(".gz")
CONTENTS = st.one_of(*map(mutations, (WARC, WARC_GZ, SITEMAP, gzip.compress(SITEMAP, mtime=0), WAT)))

CHARSETS = st.none() | st.sampled_from(["utf-8", "utf-16", "gbk", "utf-7", "hz", "\0"])
XML = ("<urlset>", "<url>", "</url>", "<image>", "</image>", "<!DOCTYPE a [", "&a;", "<![CDATA[")

TARGETS = [
    Target("page", pieces(*MARKUP), check_page),
    Target("decoding", st.tuples(st.binary(), CHARSETS), check_decoding),
    Target("url", st.tuples(pieces(*URL), st.sampled_from(["http://a.example/b/c", "file:///b/c.html"])), check_url),
    Target("data_uri", pieces(*DATA_URI, max_size=10).map("data:".__add__), check_data_uri),
    Target("srcset", pieces(*SRCSET), check_srcset),
    Target("robots", st.tuples(pieces(*ROBOTS), pieces("a", "/", "%", "$", "?")), check_robots),
    Target("opt_outs", st.tuples(pieces(*DIRECTIVES) | pieces(*TDMREP), pieces("/", "a", "*")), check_opt_outs),
    Target("wat", mutations(WAT) | JSON.map(lambda value: json.dumps({"Envelope": value}).encode()), check_wat),
    Target("sitemap", mutations(SITEMAP) | pieces(*XML).map(str.encode), check_sitemap),
    Target("files", CONTENTS | st.binary(), check_files),
    Target("crawl", st.dictionaries(st.sampled_from(NAMES), CONTENTS, max_size=3), check_crawl),
]
