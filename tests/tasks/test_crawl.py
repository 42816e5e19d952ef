"""The crawl stage: pinned records and reasons of a tiny crawl. When they change, raise VERSION."""

from pathlib import Path

import pytest

from dinov2.curation.crawl import CrawlParams
from dinov2.params import InputError
from dinov2.records import IMAGE_RECORDS, REMOVED, read_table
from tasks import crawl

PARAMS = CrawlParams(refused_domains=["bad.example"], max_page_mb=1.0)
PAGE = """<img src="/a%20b.png" alt="first"><img srcset="c.png 1x, d.png 2x"><img src="data:,"><img>
<img src="https://x.bad.example/e.png"><img src="https://[/f.png"><img src="../a b.png">"""


def test_outputs_of_a_tiny_crawl(tmp_path: Path) -> None:
    (tmp_path / "in/sub").mkdir(parents=True)
    (tmp_path / "in/sub/page.html").write_text(PAGE)
    summary = crawl.run(PARAMS, crawl=tmp_path / "in", out=tmp_path / "out")
    records = read_table(tmp_path / "out/records.parquet", IMAGE_RECORDS)
    removed = read_table(tmp_path / "out/removed.parquet", REMOVED)
    place = {"page_url": "file:///sub/page.html", "warc": None, "warc_offset": None}
    pinned = (
        [{"url": "file:///a%20b.png", "alt": "first", **place}, {"url": "file:///sub/d.png", "alt": "", **place}],
        [
            ("file:///sub/c.png", "smaller_candidate"),
            ("data:,", "refused_scheme"),
            (None, "no_url"),
            ("https://x.bad.example/e.png", "refused_domain"),
            ("https://[/f.png", "malformed_url"),
            ("file:///a%20b.png", "repeated"),
        ],
    )
    found = ([dict(row) for row in records], [(row["url"], row["reason"]) for row in removed])
    assert (crawl.VERSION, *found) == (1, *pinned)
    assert summary.num_in == summary.num_kept + sum(summary.dropped.values()) == 8


def test_two_runs_give_the_same_bytes(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name in ("b.html", "a.html"):
        (tmp_path / "in" / name).write_text(PAGE)
    for out in ("one", "two"):
        crawl.run(PARAMS, crawl=tmp_path / "in", out=tmp_path / out)
    for name in ("records.parquet", "removed.parquet"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_crawl_without_pages_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds no file named \*\.warc, .*; put pages there"):
        crawl.run(PARAMS, crawl=tmp_path, out=tmp_path / "out")
