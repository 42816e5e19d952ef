"""Pages, sitemaps and WAT records: which images they tell of, and with which candidates, best first."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from dinov2.curation.crawl.markup import decode_references, read_tags
from dinov2.curation.crawl.pages import MAX_ALT_CHARS, decode_html, read_page
from dinov2.curation.crawl.sitemaps import Sitemap, SitemapParser, read_list, read_sitemap_file
from dinov2.curation.crawl.wat import WatPage, read_wat_record


def references(text: str) -> list[list[str]]:
    return [image.references for image in read_page(text).images]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('<img src=a.jpg srcset="b.jpg 2x, c.jpg 3x">', [["c.jpg", "b.jpg", "a.jpg"]]),
        ('<picture><source srcset="a 1x, b 2x"><img src=c></picture><img src=d>', [["b", "a", "c"], ["d"]]),
        ("<video><source srcset=v></video><img src=a>", [["a"]]),
        ("<picture><source srcset=lost></picture><picture><img src=a></picture>", [["a"]]),
        ('<img src="data:image/gif;base64,R0" data-src="/lazy.jpg">', [["/lazy.jpg", "data:image/gif;base64,R0"]]),
        ('<img data-original=big.jpg src=blank.gif data-srcset="x 9w">', [["x", "big.jpg", "blank.gif"]]),
        ("<img data-src=17 src=a>", [["a"]]),  # a number for a script
        ("<img data-src=//x/a_{width}.jpg src=a>", [["a", "//x/a_{width}.jpg"]]),
        ('<img srcset="%7Bw%7D.jpg 2x, b.jpg" data-src="/<%= x %>" src="{{ y }}">',
         [["b.jpg", "%7Bw%7D.jpg", "/<%= x %>", "{{ y }}"]]),
        ("<img data-src=a.jpg src='data:image/svg+xml,{}'>", [["a.jpg", "data:image/svg+xml,{}"]]),
        ('<picture><source type="image/jxl" srcset="j 9x"><source type="IMAGE/avif; q=1" srcset="v 2x">'
         "<source srcset=w><img src=a></picture><img src=b>", [["v", "w", "a", "j"], ["b"]]),
        ("<picture><source type=video/mp4 srcset=m></picture><img src=a>", [["a"]]),
        ("<noscript><img src=a></noscript>", [["a"]]),
        ("<template><img src=no><template></template><img src=no></template><img src=a>", [["a"]]),
        ("<!-- <img src=no> --><script>'<img src=no>'</script><title><img src=no></title><img src=a>", [["a"]]),
        ("<p title='<img src=no>' a=\"'>\"><img src=a><img src=\"b><img src=no>", [["a"]]),
        ("<img src='a&amp;b&copy=1&copy;&#x41'>", [["a&b&copy=1©A"]]),
        ("<IMG SRC=a Src=b><image src=no><imgs src=no>< img src=no><img>", [["a"], []]),
        ("<img src=a><plaintext><img src=no>", [["a"]]),
        ("<script><img src=no>", []),
    ],
)  # fmt: skip
def test_candidates_of_each_img_best_first(text: str, expected: list[list[str]]) -> None:
    assert references(text) == expected


def test_base_metas_and_text_of_a_page() -> None:
    text = '<meta name="Robots" content="a&amp;b"><meta charset=utf-8><base><base href="/x"><img alt=" A\n b">'
    page = read_page(text)
    assert (page.base, page.metas) == ("/x", [("Robots", "a&b")])
    assert page.images[0].alt == "A b"
    assert len(read_page(f"<img alt={'x' * 99_999}>").images[0].alt) == MAX_ALT_CHARS


@pytest.mark.parametrize(
    ("data", "charset", "text"),
    [
        ("ü".encode("cp1252"), None, "ü"),
        ("ü".encode(), None, "ü"),
        (b"ab", "punycode", "ab"),
        (b"ab", "no such", "ab"),
        (b"ab", "\0", "ab"),  # found by fuzzing: the look-up raises ValueError
        ("<meta charset=gbk>中".encode("gbk"), None, "<meta charset=gbk>中"),
        (b"\xef\xbb\xbfa", "utf-16", "a"),
    ],
)
def test_charset_of_a_page(data: bytes, charset: str | None, text: str) -> None:
    assert decode_html(data, charset) == text


def test_capitals_outside_ascii_are_no_letters_of_html() -> None:
    tags = list(read_tags("<source srcset=<p À-->"))  # found by fuzzing
    assert [tag.attributes for tag in tags] == [{"srcset": "<p", "À--": ""}]
    assert decode_references(f"&#{'9' * 9999};") == "\ufffd"


def sitemap_of(data: bytes) -> tuple[Sitemap, bool]:
    parser = SitemapParser()
    parser.read(data)
    return parser.sitemap, bool(parser.damage)


URL = b"<url><loc> p </loc><i:image><i:loc>a</i:loc><i:caption>x\n y</i:caption></i:image><i:image/></url>"


def test_images_and_counts_of_sitemaps() -> None:
    found, is_damaged = sitemap_of(b"<urlset xmlns:i='i'>" + URL + b"<url><loc>q</loc></url></urlset>")
    assert [(page, image.references, image.alt) for page, image in found.images] == [("p", ["a"], "x y"), ("p", [], "")]
    assert (found.num_pages, is_damaged) == (2, False)
    index = b"<sitemapindex><sitemap><loc>a</loc></sitemap><sitemap/></sitemapindex>"
    assert sitemap_of(index)[0] == Sitemap([], 0, 2)
    assert sitemap_of(b"<rss><url><image><loc>a</loc></image></url></rss>")[0] == Sitemap([], 0, 0)


BOMB = b'<!DOCTYPE u [<!ENTITY a "aaaaaaaaaa">' + b"".join(
    b'<!ENTITY %c "%s">' % (98 + i, b"&%c;" % (97 + i) * 10) for i in range(20)
) + b"]><urlset><url><image><loc>&u;</loc></image></url></urlset>"  # fmt: skip


@pytest.mark.parametrize(
    "junk",
    [b"", b"\0", b"not XML", BOMB, b'<!DOCTYPE a SYSTEM "file:///etc/passwd"><urlset/>', b"<a>" * 100_000,
     b'<?xml version="1.0" encoding="klingon"?><urlset/>'],
)  # fmt: skip
def test_junk_and_bombs_are_no_sitemaps(junk: bytes) -> None:
    assert sitemap_of(junk) == (Sitemap([], 0, 0), True)


def test_sitemap_files_are_read_as_far_as_they_go(tmp_path: Path) -> None:
    whole = b"<urlset xmlns:i='i'>" + URL * 5000 + b"</urlset>"
    packed = gzip.compress(whole)
    path = tmp_path / "a.xml.gz"
    path.write_bytes(packed[: len(packed) // 2])
    data, is_damaged = read_sitemap_file(path)
    assert is_damaged
    assert whole.startswith(data)
    assert sitemap_of(data)[0].num_pages > 1000
    path.write_bytes(gzip.compress(bytes(60 << 20)))  # a bomb
    data, is_damaged = read_sitemap_file(path)
    assert (len(data), is_damaged) == (50 << 20, True)


def test_list_with_an_endless_line(tmp_path: Path) -> None:
    path = tmp_path / "urls.txt"
    path.write_bytes(b"\xef\xbb\xbfa\r\n#c\n\n" + b"x" * 3_000_000 + b"\nb")
    assert [line[:3] for line in read_list(path)] == ["a", "xxx", "b"]


def wat(links: Any, **other: Any) -> WatPage | None:
    html = {"Head": {"Base": "/b/", "Metas": [{"name": "robots", "content": "noai"}, 3]}, "Links": links}
    answer = {"Response-Message": {"Status": "200"}, "Headers": {"A": "b", "C": ["d", "e"]}, "HTML-Metadata": html}
    about = {"WARC-Target-URI": "http://a.example/", "WARC-Type": "response"}
    envelope = {"WARC-Header-Metadata": about, "Payload-Metadata": {"HTTP-Response-Metadata": {**answer, **other}}}
    return read_wat_record(json.dumps({"Envelope": envelope}).encode())


def test_images_of_a_wat_record() -> None:
    links = [
        {"path": "IMG@/src", "url": "a", "alt": "x"}, {"path": "IMG@/srcset", "url": "b 2x, c 3x"},
        {"path": "A@/href", "url": "no"}, {"path": "IMG@/data-src", "url": "d.jpg"}, {"path": "IMG@/src", "url": "e"},
        {"path": "SOURCE@/srcset", "url": "f 2x"}, {"path": "IMG@/src", "url": "\ud800g"}, {"path": "IMG@/src"}, 7, {},
    ]  # fmt: skip
    found = wat(links)
    assert found is not None
    assert found.headers == [("A", "b"), ("C", "d"), ("C", "e")]
    assert (found.page.base, found.page.metas) == ("/b/", [("robots", "noai")])
    assert [image.references for image in found.page.images] == [["c", "b", "a"], ["d.jpg"], ["e"], ["f", "?g"], []]
    assert found.page.images[0].alt == "x"


def test_wat_records_of_other_things_and_junk() -> None:
    assert wat([], **{"Response-Message": {"Status": "404"}}) is None
    assert wat({"path": "IMG@/src"}) is not None
    for data in (b"[]", b"{}", b'{"Envelope": 3}', b"1"):
        assert read_wat_record(data) is None
    for data in (b"", b"{", b"\xff", b"[" * 100_000, b"9" * 5000):
        with pytest.raises(ValueError, match=r"."):
            read_wat_record(data)
