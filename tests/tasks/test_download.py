"""The download stage: pinned manifest of a tiny crawl. When it changes, raise VERSION."""

import json
from pathlib import Path

import pytest

from dinov2.curation.download import DownloadParams
from dinov2.params import InputError
from dinov2.records import IMAGE_RECORDS, MANIFEST, REMOVED, read_table, write_table
from dinov2.store import Store, StoreParams
from tasks import download

PARAMS = DownloadParams(
    network=False,
    max_bytes=1000,
    timeout_s=1.0,
    max_redirects=0,
    max_concurrent=1,
    max_per_host=1,
    user_agent="test",
    allow_private_addresses=False,
    shard_mb=1,
    max_dropped_share=0.9,
)


def test_outputs_of_a_tiny_crawl(tmp_path: Path) -> None:
    crawl = tmp_path / "crawl"
    crawl.mkdir()
    bodies = {"a.gif": b"GIF89a one", "copy.gif": b"GIF89a one", "b.jpg": b"\xff\xd8\xff two", "c.png": b"<html>"}
    for name, body in bodies.items():
        (crawl / name).write_bytes(body)
    urls = [f"file:///{name}" for name in bodies] + ["https://site.example/far.png"]
    rows = [{"url": url, "page_url": "file:///p.html", "alt": "", "warc": None, "warc_offset": None} for url in urls]
    write_table(tmp_path / "records/records.parquet", IMAGE_RECORDS, rows)
    store = Store(StoreParams(url=str(tmp_path / "store"), cache=""))
    summary = download.run(
        PARAMS,
        crawl_records=tmp_path / "records",
        crawl=crawl,
        out=tmp_path / "out",
        work=tmp_path / "work",
        store=store,
    )
    manifest = read_table(tmp_path / "out/manifest.parquet", MANIFEST)
    removed = read_table(tmp_path / "out/removed.parquet", REMOVED)
    shard = "296c55a4f5b839ea24500b180d09b2a4"
    pinned = (
        [("file:///a.gif", "image/gif", 512, 10), ("file:///b.jpg", "image/jpeg", 2560, 7)],
        [
            ("file:///copy.gif", "duplicate_bytes"),
            ("file:///c.png", "not_an_image"),
            ("https://site.example/far.png", "not_in_crawl"),
        ],
        shard,
    )
    found = (
        [(row["url"], row["mime"], row["offset"], row["length"]) for row in manifest],
        [(row["url"], row["reason"]) for row in removed],
        manifest[0]["shard"][:32],
    )
    assert (download.VERSION, *found) == (1, *pinned)
    assert list(json.loads((tmp_path / "out/blobs.json").read_text())) == [manifest[0]["shard"]]
    assert summary.num_in == summary.num_kept + sum(summary.dropped.values()) == 5


def test_records_of_another_schema_are_an_input_error(tmp_path: Path) -> None:
    write_table(tmp_path / "records.parquet", REMOVED, [])
    store = Store(StoreParams(url=str(tmp_path / "store"), cache=""))
    with pytest.raises(InputError, match="no column 'page_url'"):
        download.run(PARAMS, crawl_records=tmp_path, crawl=tmp_path, out=tmp_path / "out", work=tmp_path, store=store)
