"""URLs: one spelling each, refused with a reason; `data:` URIs and srcset read as browsers do."""

from pathlib import Path

import pytest

from dinov2.curation.crawl.urls import (
    UrlRefusedError,
    canonical,
    canonical_data_uri,
    decode_data_uri,
    file_url,
    is_refused_domain,
    local_path,
    resolve,
    site_of,
    srcset_candidates,
)

PAGE = "http://site.example/dir/page.html"


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
        ("/%7ejoe/%c3%a4%2d%41%5f.jpg?a=%7e%2f", "http://site.example/~joe/%C3%A4-A_.jpg?a=~%2F"),
        ("/a/%2e%2E/b%2fc%25%37e.jpg", "http://site.example/b%2Fc%257e.jpg"),
        ("/100%/%7e.jpg", "http://site.example/100%/%7e.jpg"),  # whether %/% is one escape or none is not certain
        ("/%%37e", "http://site.example/%%37e"),
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
    assert resolve("//////", "file:///b/c.html") == resolve("file:///", "file:///b/c.html")  # found by fuzzing
    assert resolve("//////http:", "file:///b/c.html") == "file:///http:"
    assert resolve("%2e%2e/%2e%2e/secret", "file:///b/c.html") == "file:///secret"
    for reference in ("%2e%2e/secret%", "file://host/share"):
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
def test_srcset_largest_candidate(srcset: str, largest: str | None) -> None:
    found = srcset_candidates(srcset)
    assert max(found, key=lambda candidate: candidate[:2], default=(0, 0, None))[2] == largest


def test_refused_domain_covers_subdomains_only() -> None:
    domains = frozenset({"bad.example"})
    assert is_refused_domain("http://img.bad.example/x", domains)
    assert is_refused_domain("http://bad.example:8080/x", domains)
    assert not is_refused_domain("http://notbad.example/x", domains)


def test_site_is_scheme_host_and_port() -> None:
    assert site_of("https://a.example:8443/b/c?d=/e") == "https://a.example:8443"


@pytest.mark.parametrize("name", ["a b.png", "\udcff.png", "\xe9/%41.png"])
def test_files_are_found_by_their_urls_whatever_their_names(name: str) -> None:
    assert local_path(file_url(Path("crawl", name), Path("crawl")), Path("crawl")) == Path("crawl", name)
