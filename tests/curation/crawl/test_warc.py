"""Answers that a crawl holds only in part, or encoded as nothing here decodes: they settle nothing."""

from pathlib import Path

import pytest
from crawls import HTML, Answer, crawl, write_warc

SITE = "http://site.example"
PAGE = Answer(SITE, HTML, b'<img src="/whole.png"><img src="/cut.png"><img src="/br.png"><img src="/no.png">')
CUT = [("WARC-Truncated", "length")]
BROTLI = [("Content-Encoding", "br")]


def image(name: str, **more: object) -> Answer:
    return Answer(f"{SITE}/{name}.png", "image/png", b"\x89PNG", **more)  # pyright: ignore[reportArgumentType]


def test_an_image_that_is_cut_short_or_encoded_is_asked_for_again(tmp_path: Path) -> None:
    opted_out = [*BROTLI, ("X-Robots-Tag", "noai")]
    answers = [image("whole"), image("cut", about=CUT), image("br", headers=BROTLI), image("no", headers=opted_out)]
    write_warc(tmp_path / "a.warc.gz", [PAGE, *answers])
    result = crawl(tmp_path)
    assert [(row["url"], row["warc"]) for row in result.records] == [
        (f"{SITE}/whole.png", "a.warc.gz"), (f"{SITE}/cut.png", None), (f"{SITE}/br.png", None),
    ]  # fmt: skip
    assert result.reasons == ["x_robots_tag_noai"]
    assert (result.metrics["cut_answers"], result.metrics["undecoded_answers"]) == (1, 2)


def test_a_whole_answer_elsewhere_is_found_beside_one_that_is_cut(tmp_path: Path) -> None:
    write_warc(tmp_path / "a.warc", [PAGE, image("cut", about=CUT)])
    write_warc(tmp_path / "b.warc", [image("cut")])
    assert [row["warc"] for row in crawl(tmp_path).records] == [None, "b.warc", None, None]


def test_a_page_that_is_cut_is_read_as_far_as_it_goes(tmp_path: Path) -> None:
    write_warc(tmp_path / "a.warc", [PAGE._replace(body=PAGE.body[:-10], about=CUT)])
    result = crawl(tmp_path)
    assert len(result.urls) == 3
    assert (result.metrics["pages"], result.metrics["cut_answers"]) == (1, 1)


@pytest.mark.parametrize("encoding", ["br", "zstd", "gzip, br"])
def test_a_page_that_is_not_decoded_is_counted_and_not_read(tmp_path: Path, encoding: str) -> None:
    encoded = PAGE._replace(url=f"{SITE}/b", headers=[("Content-Encoding", encoding)])
    write_warc(tmp_path / "a.warc", [PAGE._replace(headers=[("Content-Encoding", " Identity")]), encoded])
    result = crawl(tmp_path)
    assert (result.metrics["pages"], result.metrics["undecoded_answers"]) == (1, 1)


def test_rules_of_a_site_that_are_not_decoded_are_no_rules(tmp_path: Path) -> None:
    robots = Answer(f"{SITE}/robots.txt", "text/plain", b"User-agent: *\nDisallow: /", headers=BROTLI)
    write_warc(tmp_path / "a.warc", [PAGE, robots])
    assert len(crawl(tmp_path).urls) == 4
