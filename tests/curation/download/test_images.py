"""The download as a whole: what the crawl holds, equal bytes once, the same result whoever does the work."""

import base64
import gzip
import hashlib
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from download_run import Downloaded, changed, record, run_download, run_stage, store_in
from misbehaving_server import MisbehavingServer, png, serving

from dinov2.params import InputError
from dinov2.records import REMOVED, write_table
from dinov2.shards import ShardReader


@pytest.fixture
def servers() -> Iterator[list[MisbehavingServer]]:
    with serving("127.0.0.1") as a, serving("127.0.0.2") as b, serving("127.0.0.3") as c, serving("127.0.0.4") as d:
        yield [a, b, c, d]


def write_answers(path: Path, answers: list[tuple[str, bytes]], status: str = "200 OK") -> list[int]:
    """A WARC of (URL, body), one gzip member a record; returns the offsets."""
    path.parent.mkdir(parents=True, exist_ok=True)
    offsets = []
    with path.open("wb") as stream:
        for url, body in answers:
            http = f"HTTP/1.1 {status}\r\nContent-Type: image/png\r\n\r\n".encode() + body
            head = f"WARC/1.0\r\nWARC-Type: response\r\nWARC-Target-URI: {url}\r\nContent-Length: {len(http)}\r\n"
            offsets.append(stream.tell())
            stream.write(gzip.compress(f"{head}Content-Type: application/http\r\n\r\n".encode() + http + b"\r\n\r\n"))
    return offsets


def outputs(folder: Path) -> dict[str, bytes]:
    """All that a run leaves in its output and store."""
    paths = [path for place in ("out", "store") for path in (folder / place).rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(paths)}


def images(result: Downloaded, folder: Path) -> list[bytes]:
    reader = ShardReader(store_in(folder))
    found = [reader.read(row) for row in result.rows]
    reader.close()
    return found


def test_images_of_the_crawl_need_no_network(tmp_path: Path) -> None:
    crawl = tmp_path / "crawl"
    names = [f"http://site.example/{i}.png" for i in range(3)]
    bodies = [png("0"), b"<html>", png("2", num_bytes=300_000)]
    offsets = write_answers(crawl / "x/a.warc.gz", list(zip(names, bodies, strict=True)))
    write_answers(crawl / "b.warc.gz", [("http://site.example/gone.png", b"")], status="404 Not Found")
    (crawl / "local.png").write_bytes(png("local"))
    (crawl / "copy.png").write_bytes(png("0"))
    (crawl / "bomb.png").write_bytes(png("bomb", 30_000, 30_000))
    records = [record(name, "x/a.warc.gz", offset) for name, offset in zip(names, offsets, strict=True)]
    records += [record(f"file:///{name}.png") for name in ("local", "copy", "absent", "bomb")]
    records += [record("http://site.example/elsewhere.png"), record(names[0], "x/a.warc.gz", offsets[1])]
    records += [record(names[0], "x/a.warc.gz", offsets[0] + 3), record("http://site.example/gone.png", "b.warc.gz", 0)]
    result = run_download(tmp_path, records, network=False, num_workers=2)
    assert [row["url"] for row in result.rows] == [names[0], "file:///local.png"]
    assert result.reasons == [
        "not_an_image",
        "too_large",
        "duplicate_bytes",
        "unreadable_file",
        "too_many_pixels",
        "not_in_crawl",
        "damaged_warc",
        "damaged_warc",
        "bad_status",
    ]
    copy = result.removed[2]
    assert copy["id"] == copy["witness_id"] == result.rows[0]["id"]
    assert images(result, tmp_path) == [png("0"), png("local")]


def test_data_uris_are_images_too(tmp_path: Path) -> None:
    uri = "data:image/gif;base64," + base64.b64encode(png("inline")).decode()  # the type lies
    broken = "data:image/png;base64,AAAA!" + "A" * 1000
    result = run_download(tmp_path, [record(uri), record(broken), record("data:image/png;base64,AAAA")], network=False)
    assert images(result, tmp_path) == [png("inline")]
    digest = hashlib.sha256(png("inline")).hexdigest()
    assert [(row["url"], row["mime"]) for row in result.rows] == [(f"data:image/gif;sha256,{digest}", "image/png")]
    assert result.reasons == ["malformed_data_uri", "not_an_image"]
    assert max(len(row["url"]) for row in result.removed) <= 200


def test_equal_bytes_are_stored_once_over_all_parts(tmp_path: Path, servers: list[MisbehavingServer]) -> None:
    (tmp_path / "crawl").mkdir()
    (tmp_path / "crawl" / "3.png").write_bytes(png("3"))
    records = [record(f"{server.url}/good/{i}") for i in range(6) for server in servers]
    records.insert(5, record("file:///3.png"))  # before the servers' own copies of it
    result = run_download(tmp_path, records)
    assert images(result, tmp_path) == [png(name) for name in ("0", "1", "3", "2", "4", "5")]
    assert result.rows[2]["url"] == "file:///3.png"
    assert result.reasons == ["duplicate_bytes"] * 19
    assert all(row["witness_id"] in {kept["id"] for kept in result.rows} for row in result.removed)


def test_result_is_the_same_for_any_number_of_workers(tmp_path: Path, servers: list[MisbehavingServer]) -> None:
    paths = ["good/{}", "good/{}", "hop/1?{}", "status/404", "flaky/1/{}", "html", "size/9999/9999"]
    records = [record(f"{servers[i % 4].url}/{paths[i % 7].format(i % 15)}?{i}") for i in range(60)]
    records += [record(f"{servers[i % 4].url}/away/{servers[i % 3].url}/good/{i}") for i in range(10)]
    one = run_download(tmp_path / "one", records)
    three = run_download(tmp_path / "three", records, num_workers=3)
    assert len(one.rows) > 20
    assert one.summary == three.summary
    assert outputs(tmp_path / "one") == outputs(tmp_path / "three")
    slowly = run_download(tmp_path / "slowly", records, politeness={"max_hosts": 1, "max_per_host": 1})
    assert slowly.rows == one.rows
    otherwise = run_download(tmp_path / "otherwise", records, num_parts=5)
    assert otherwise.rows == one.rows
    assert otherwise.removed == one.removed


def test_shards_are_filled_within_a_block_of_records(tmp_path: Path) -> None:
    (tmp_path / "crawl").mkdir()
    for i in range(10):
        (tmp_path / "crawl" / f"{i}.png").write_bytes(png(f"{i}", num_bytes=150_000))
    result = run_download(tmp_path, [record(f"file:///{i}.png") for i in range(10)], network=False)
    shards = [row["shard"] for row in result.rows]
    assert len(set(shards)) == 2  # seven of 0.15 MB make the first, the next block of seven the second
    assert len(set(shards[:7])) == 1


def test_bytes_that_change_between_looking_and_packing_are_an_input_error(tmp_path: Path) -> None:
    (tmp_path / "crawl").mkdir()
    path = tmp_path / "crawl" / "a.png"
    path.write_bytes(png("a"))
    run_download(tmp_path, [record("file:///a.png")], network=False)
    path.write_bytes(png("b"))
    shutil.rmtree(tmp_path / "work" / "made" / "pack")
    with pytest.raises(InputError, match=r"file:///a\.png changed while the stage ran"):
        run_stage(tmp_path, changed(network=False))


def test_warc_that_is_gone_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"a\.warc is gone"):
        run_download(tmp_path, [record("http://site.example/a.png", "a.warc", 0)])


def test_records_of_another_schema_are_an_input_error(tmp_path: Path) -> None:
    write_table(tmp_path / "records.parquet", REMOVED, [])
    with pytest.raises(InputError, match="no column 'page_url'"):
        run_stage(tmp_path, changed())
    (tmp_path / "records.parquet").write_bytes(b"PAR1 cut")
    with pytest.raises(InputError, match="not a readable Parquet file"):
        run_stage(tmp_path, changed())


def test_no_records_are_no_images(tmp_path: Path) -> None:
    result = run_download(tmp_path, [])
    assert (result.rows, result.removed) == ([], [])


def test_too_many_failures_stop_the_stage_and_the_next_run_tries_them_again(
    tmp_path: Path, servers: list[MisbehavingServer]
) -> None:
    paths = ["flaky/7/a", "flaky/7/b", "status/404", "good/c"]
    records = [record(f"{servers[0].url}/{path}") for path in paths]
    with pytest.raises(InputError, match="3 of 4 images can't be had, most of them server_error"):
        run_download(tmp_path, records, max_dropped_share=0.5)
    result = run_download(tmp_path, records, max_dropped_share=0.5)
    assert result.reasons == ["bad_status"]
    asked = {path: servers[0].asked[f"/{path}"] for path in paths}
    assert asked == {"flaky/7/a": 8, "flaky/7/b": 8, "status/404": 1, "good/c": 1}


def test_copies_and_opt_outs_are_no_failures(tmp_path: Path, servers: list[MisbehavingServer]) -> None:
    servers[0].robots = b"User-agent: *\nDisallow: /good/no"
    paths = ["good/a", "good/a?", "good/no", "headed/X-Robots-Tag/noai"]
    result = run_download(tmp_path, [record(f"{servers[0].url}/{path}") for path in paths], max_dropped_share=0.0)
    assert result.reasons == ["duplicate_bytes", "robots_txt", "x_robots_tag_noai"]
