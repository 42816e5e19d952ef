"""The crawl stage: pinned records and reasons of a tiny crawl. When they change, raise VERSION."""

from pathlib import Path

import pytest
from crawls import PARAMS

from dinov2.curation.crawl.candidates import CrawlParams
from dinov2.params import InputError
from dinov2.records import IMAGE_RECORDS, REMOVED, Summary, read_table
from tasks import crawl
from tasks.fan_out import make_parts

PAGE = """<img src="/a%20b.png" alt="first"><img srcset="c.png 1x, d.png 2x"><img src="data:,"><img>
<img src="https://x.bad.example/e.png"><img src="https://[/f.png"><img src="../a b.png">"""


def run_stage(folder: Path, out: Path, params: CrawlParams = PARAMS, workers: int = 1) -> Summary:
    work = out.with_name(out.name + "-work")
    work.mkdir()
    values = {"params": params, "crawl": folder, "work": work}
    for worker in reversed(range(workers)):
        make_parts(crawl.PHASES[0], values, first=worker, of=workers)
    return crawl.run(params, crawl=folder, out=out, work=work)


def test_outputs_of_a_tiny_crawl(tmp_path: Path) -> None:
    (tmp_path / "in/sub").mkdir(parents=True)
    (tmp_path / "in/sub/page.html").write_text(PAGE)
    summary = run_stage(tmp_path / "in", tmp_path / "out")
    records = read_table(tmp_path / "out/records.parquet", IMAGE_RECORDS)
    removed = read_table(tmp_path / "out/removed.parquet", REMOVED)
    place = {"page_url": "file:///sub/page.html", "warc": None, "warc_offset": None}
    pinned = (
        [
            {"url": "file:///a%20b.png", "alt": "first", **place},
            {"url": "file:///sub/d.png", "alt": "", **place},
            {"url": "data:text/plain;base64,", "alt": "", **place},
        ],
        [
            ("file:///sub/c.png", "smaller_candidate"),
            (None, "no_url"),
            ("https://x.bad.example/e.png", "refused_domain"),
            ("https://[/f.png", "malformed_url"),
            ("file:///a%20b.png", "repeated"),
        ],
    )
    found = ([dict(row) for row in records], [(row["url"], row["reason"]) for row in removed])
    assert (crawl.VERSION, *found) == (3, *pinned)
    assert summary.num_in == summary.num_kept + sum(summary.dropped.values()) == 8


def test_workers_and_restarts_give_the_same_bytes(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name in "bac":
        (tmp_path / f"in/{name}.html").write_text(f'{PAGE}<img src="{name}.jpg">' + " " * 900_000)
    for out, workers in (("one", 1), ("two", 3)):
        run_stage(tmp_path / "in", tmp_path / out, workers=workers)
    crawl.read_group(1, PARAMS, crawl=tmp_path / "in", work=tmp_path / "two-work")  # killed before its mark was made
    crawl.run(PARAMS, crawl=tmp_path / "in", out=tmp_path / "again", work=tmp_path / "two-work")
    for name in ("records.parquet", "removed.parquet"):
        assert len({(tmp_path / out / name).read_bytes() for out in ("one", "two", "again")}) == 1


def test_crawl_without_pages_or_images_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    with pytest.raises(InputError, match=r"holds no file named \*\.warc, .*; put pages there"):
        run_stage(tmp_path / "in", tmp_path / "out")
    (tmp_path / "in/a.html").write_text("<p>no image<img>")
    with pytest.raises(InputError, match=r"gives no image: 1 pages, 1 references of <img> dropped"):
        run_stage(tmp_path / "in", tmp_path / "out2")
