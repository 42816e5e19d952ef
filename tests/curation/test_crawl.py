"""The crawl: every `<img>` accounted for, URLs brought to one spelling, damaged files read as far as they go."""

import gzip
from pathlib import Path

import pytest

from dinov2.curation.crawl import CrawlParams, CrawlResult, crawl_images, decode_html
from dinov2.curation.urls import (
    UrlRefusedError,
    canonical,
    canonical_data_uri,
    decode_data_uri,
    is_refused_domain,
    resolve,
    srcset_urls,
)
from dinov2.params import InputError

PARAMS = CrawlParams(refused_domains=["bad.example"], max_page_mb=1.0)
PAGE = "http://site.example/dir/page.html"
HTML = "text/html; charset=utf-8"


def write_warc(path: Path, answers: list[tuple[str, str, bytes]], status: str = "200 OK") -> None:
    """A WARC of (URL, content type, body), one gzip member a record where the name says so."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as stream:
        for url, mime, body in answers:
            http = f"HTTP/1.1 {status}\r\nContent-Type: {mime}\r\n\r\n".encode() + body
            head = f"WARC/1.0\r\nWARC-Type: response\r\nWARC-Target-URI: {url}\r\nContent-Length: {len(http)}\r\n"
            record = f"{head}Content-Type: application/http; msgtype=response\r\n\r\n".encode() + http + b"\r\n\r\n"
            stream.write(gzip.compress(record) if path.suffix == ".gz" else record)


def crawl_pages(folder: Path, *pages: str) -> CrawlResult:
    answers = [(PAGE.replace("page", f"page{i}"), HTML, page.encode()) for i, page in enumerate(pages)]
    write_warc(folder / "a.warc.gz", answers)
    return crawl_images(PARAMS, folder)


def urls(result: CrawlResult) -> list[str]:
    return [record["url"] for record in result.records]


def reasons(result: CrawlResult) -> list[str]:
    return [row["reason"] for row in result.removed]


@pytest.mark.parametrize(
    ("reference", "expected"),
    [
        ("a.jpg", "http://site.example/dir/a.jpg"),
        ("../a.jpg#top", "http://site.example/a.jpg"),
        ("//CDN.Example.:80/x y.jpg", "http://cdn.example/x%20y.jpg"),
        (" \n/a\n.jpg ", "http://site.example/a.jpg"),
        ("img\\a.jpg?p=\\", "http://site.example/dir/img/a.jpg?p=%5C"),
        ("https://h.example/a/../b?q=ä", "https://h.example/b?q=%C3%A4"),
        ("http://bücher.example/ü.jpg", "http://xn--bcher-kva.example/%C3%BC.jpg"),
        ("http://[::1]:8080/a", "http://[::1]:8080/a"),
    ],
)
def test_resolve_gives_one_spelling(reference: str, expected: str) -> None:
    assert resolve(reference, PAGE) == expected
    assert canonical(expected) == expected


@pytest.mark.parametrize(
    ("reference", "reason"),
    [
        ("data:image/png;base64,AA==", "refused_scheme"),
        ("javascript:alert(1)", "refused_scheme"),
        ("file:///etc/passwd", "refused_scheme"),
        ("ftp://h.example/a.jpg", "refused_scheme"),
        ("http://[broken/a.jpg", "malformed_url"),
        ("http://h.example:99999/a.jpg", "malformed_url"),
        ("http://user:secret@h.example/a.jpg", "malformed_url"),
        ("http://a..b/a.jpg", "malformed_url"),
        ("a\ufffd.jpg", "malformed_url"),
        ("a" * 9000, "malformed_url"),
        ("", "malformed_url"),
    ],
)
def test_resolve_refuses_with_reason(reference: str, reason: str) -> None:
    with pytest.raises(UrlRefusedError) as caught:
        resolve(reference, PAGE)
    assert caught.value.reason == reason


@pytest.mark.parametrize(
    ("url", "mime", "data"),
    [
        ("data:image/gif;base64,R0lGODlh", "image/gif", b"GIF89a"),
        ("DATA:Image/GIF;charset=x; BASE64 ,R0lG\nODl h#part", "image/gif", b"GIF89a"),
        ("data:image/gif;base64,%52%30lGODlhAQ==", "image/gif", b"GIF89a\x01"),
        ("data:image/svg+xml;utf8,<svg a=','>%20", "image/svg+xml", b"<svg a=','> "),
        ("data:,", "text/plain", b""),
    ],
)
def test_data_uri_is_decoded_to_one_spelling(url: str, mime: str, data: bytes) -> None:
    assert decode_data_uri(url) == (mime, data)
    assert decode_data_uri(canonical_data_uri(url)) == (mime, data)
    assert canonical_data_uri(canonical_data_uri(url)) == canonical_data_uri(url)


@pytest.mark.parametrize(
    "url", ["data:image/png", "image/png,AA", "data:a/b;base64,A", "data:a/b;base64,*AAA", "data:\xff,"]
)
def test_malformed_data_uri_is_refused(url: str) -> None:
    with pytest.raises(UrlRefusedError, match="malformed_data_uri"):
        canonical_data_uri(url)


def test_file_urls_stay_inside_the_crawl() -> None:
    assert resolve("../../../etc/passwd", "file:///pages/a.html") == "file:///etc/passwd"  # rooted at the crawl
    for reference in ("%2e%2e/secret", "file://host/share"):
        with pytest.raises(UrlRefusedError, match="malformed_url"):
            resolve(reference, "file:///pages/a.html")


@pytest.mark.parametrize(
    ("srcset", "largest"),
    [
        ("a.jpg 100w,b.jpg 300w, c.jpg 200w", "b.jpg"),
        ("a.jpg, b.jpg 2x", "b.jpg"),
        ("data:image/png;base64,AA== 1x, b.jpg 2x", "b.jpg"),
        ("a,b.jpg 2x, c.jpg", "a,b.jpg"),
        ("a.jpg -2x, b.jpg (x, y) 3x, c.jpg 2x", "b.jpg"),
        ("a.jpg 1x, b.jpg 1x", "a.jpg"),
        (" ,, ", None),
    ],
)
def test_srcset_largest_first(srcset: str, largest: str | None) -> None:
    assert next(iter(srcset_urls(srcset)), None) == largest


def test_the_largest_url_that_is_not_refused_is_taken(tmp_path: Path) -> None:
    result = crawl_pages(
        tmp_path, '<img src="b.jpg" srcset="//bad.example/a.jpg 3x, data:image/gif;base64,R0 2x">'
    )
    assert urls(result) == ["http://site.example/dir/b.jpg"]
    assert reasons(result) == ["refused_domain", "refused_scheme"]


def test_refused_domain_covers_subdomains_only() -> None:
    domains = frozenset({"bad.example"})
    assert is_refused_domain("http://img.bad.example/x", domains)
    assert is_refused_domain("http://bad.example:8080/x", domains)
    assert not is_refused_domain("http://notbad.example/x", domains)


def test_every_img_is_kept_or_dropped_with_reason(tmp_path: Path) -> None:
    page = (
        '<base href="http://cdn.example/b/"><img src="a.jpg" alt=" A \n dog ">'
        '<img src="s.jpg" srcset="m.jpg 200w, l.jpg 400w"><img src="data:image/gif;base64,R0"><img alt="none">'
        '<img src="http://x.bad.example/p.jpg"><img src="http://[/"><img src="/b/a.jpg">'
    )
    result = crawl_pages(tmp_path, page, '<img src="http://cdn.example/b/a.jpg" alt="later">')
    assert urls(result) == ["http://cdn.example/b/a.jpg", "http://cdn.example/b/l.jpg"]
    assert result.records[0]["alt"] == "A dog"
    assert result.records[0]["page_url"] == "http://site.example/dir/page0.html"
    assert reasons(result) == ["smaller_candidate"] * 2 + [
        "refused_scheme",
        "no_url",
        "refused_domain",
        "malformed_url",
        "repeated",
        "repeated",
    ]
    assert [row["url"] for row in result.removed[:2]] == ["http://cdn.example/b/m.jpg", "http://cdn.example/b/s.jpg"]
    assert result.metrics["pages"] == 2


@pytest.mark.parametrize("name", ["x/a.warc.gz", "x/a.warc"])
def test_answers_in_the_warc_are_found(tmp_path: Path, name: str) -> None:
    answers = [(PAGE, HTML, b'<img src="/1.png"><img src="/2.png"><img src="/3.png">')]
    answers += [(f"http://site.example/{i}.png", "image/png", b"image" * i) for i in (1, 2)]
    write_warc(tmp_path / name, answers)
    result = crawl_images(PARAMS, tmp_path)
    assert [record["warc"] for record in result.records] == [name, name, None]
    data = (tmp_path / name).read_bytes()
    for record in result.records[:2]:
        at = data[record["warc_offset"] :]
        assert (gzip.decompress(at) if name.endswith("gz") else at).startswith(b"WARC/1.0")


def test_a_lasting_refusal_in_the_crawl_settles_a_url_unless_it_also_gave_the_image(tmp_path: Path) -> None:
    tags = "".join(f'<img src="/{name}.png">' for name in ("gone", "back", "moved", "busy"))
    write_warc(tmp_path / "a.warc", [(PAGE, HTML, tags.encode())])
    answers = {"b": ("404 Not Found", ["gone", "back"]), "c": ("302 Found", ["moved"]), "d": ("429 Slow", ["busy"])}
    for file, (status, names) in {**answers, "e": ("200 OK", ["back"])}.items():
        found = [(f"http://site.example/{name}.png", "image/png", b"") for name in names]
        write_warc(tmp_path / f"{file}.warc", found, status)
    assert [record["warc"] for record in crawl_images(PARAMS, tmp_path).records] == ["b.warc", "e.warc", None, None]


def test_html_folder_gives_file_urls(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/a b.html").write_text('<img src="x y.jpg"><img src="http://site.example/z.jpg">')
    result = crawl_images(PARAMS, tmp_path)
    assert urls(result) == ["file:///sub/x%20y.jpg", "http://site.example/z.jpg"]
    assert result.records[0]["page_url"] == "file:///sub/a%20b.html"


def test_undeclared_latin_page_and_invalid_utf8_url(tmp_path: Path) -> None:
    assert decode_html("ü".encode("cp1252"), None) == "ü"
    assert decode_html(b"ab", "punycode") == "ab"
    write_warc(tmp_path / "a.warc", [(PAGE, HTML, b'<img src="\xff.jpg"><img src="%FF.jpg">')])
    result = crawl_images(PARAMS, tmp_path)
    assert urls(result) == ["http://site.example/dir/%FF.jpg"]
    assert reasons(result) == ["malformed_url"]


@pytest.mark.parametrize("name", ["b.warc.gz", "b.warc"])
def test_truncated_warc_gives_what_came_before(tmp_path: Path, name: str) -> None:
    pages = [(f"http://site.example/{i}", HTML, f'<img src="/{i}.jpg">'.encode()) for i in range(3)]
    write_warc(tmp_path / name, pages[:2])
    complete_bytes = (tmp_path / name).stat().st_size
    write_warc(tmp_path / name, pages)
    whole = (tmp_path / name).read_bytes()
    (tmp_path / "c.html").write_text('<img src="http://site.example/after.jpg">')
    for cut in range(complete_bytes + 1, len(whole) - 8, 5):  # the last 8 bytes hold no content
        (tmp_path / name).write_bytes(whole[:cut])
        result = crawl_images(PARAMS, tmp_path)
        assert result.metrics["damaged_files"] == 1, cut
        assert urls(result) == [f"http://site.example/{i}.jpg" for i in (0, 1)] + ["http://site.example/after.jpg"], cut


def test_corrupt_gzip_is_counted(tmp_path: Path) -> None:
    pages = [(f"http://site.example/{i}", HTML, f'<img src="/{i}.jpg">'.encode()) for i in range(4)]
    write_warc(tmp_path / "a.warc.gz", pages)
    data = bytearray((tmp_path / "a.warc.gz").read_bytes())
    data[len(data) // 2 : len(data) // 2 + 40] = b"\xaa" * 40
    (tmp_path / "a.warc.gz").write_bytes(data)
    (tmp_path / "b.warc.gz").write_bytes(b"no gzip at all")
    result = crawl_images(PARAMS, tmp_path)
    assert result.metrics["damaged_files"] == 2
    assert "http://site.example/0.jpg" in urls(result)


def test_oversized_page_is_counted(tmp_path: Path) -> None:
    result = crawl_pages(tmp_path, '<img src="a.jpg">', '<img src="b.jpg">' + " " * 1_000_000)
    assert urls(result) == ["http://site.example/dir/a.jpg"]
    assert result.metrics["oversized_pages"] == 1


def test_crawl_without_images_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        crawl_images(PARAMS, tmp_path / "absent")
    with pytest.raises(InputError, match="holds no file"):
        crawl_images(PARAMS, tmp_path)
    (tmp_path / "a.html").write_text("<p>no image</p>")
    with pytest.raises(InputError, match="gives no image"):
        crawl_images(PARAMS, tmp_path)
