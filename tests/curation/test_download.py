"""The download: three sources, every limit, against a local server that misbehaves."""

import gzip
import json
import time
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock, Thread
from typing import Any

import pytest

from dinov2.curation.download import DownloadParams, DownloadResult, download_images, sniff_mime
from dinov2.curation.fetch import FetchLog, fetch_all, is_public
from dinov2.params import InputError
from dinov2.records import REMOVED, write_table
from dinov2.shards import ShardReader
from dinov2.store import Store, StoreParams

PNG = b"\x89PNG\r\n\x1a\n" + b"body of an image"
PARAMS = DownloadParams(
    network=True,
    max_bytes=10_000,
    timeout_s=5.0,
    max_redirects=3,
    max_concurrent=8,
    max_per_host=4,
    user_agent="test",
    allow_private_addresses=True,
    shard_mb=1,
    max_dropped_share=1.0,
)


class Misbehaving(BaseHTTPRequestHandler):
    """Answers by path: good images, redirects, wrong kinds, endless and slow bodies."""

    protocol_version = "HTTP/1.1"
    asked: Counter[str]
    num_open = 0
    most_open = 0
    lock = Lock()

    def do_GET(self) -> None:
        with self.lock:
            self.asked[self.path] += 1
            type(self).num_open += 1
            type(self).most_open = max(self.most_open, self.num_open)
        try:
            self.answer(self.path.strip("/").split("/"))
        except OSError:
            self.close_connection = True  # the client left, as it should
        finally:
            with self.lock:
                type(self).num_open -= 1

    def answer(self, path: list[str]) -> None:
        match path:
            case ["good", name]:
                time.sleep(0.01)
                self.send(200, PNG + name.encode())
            case ["status", code]:
                self.send(int(code), b"no")
            case ["loop"]:
                self.send(302, b"", Location="/loop")
            case ["hop", count]:
                self.send(301, b"", Location=f"/hop/{int(count) - 1}" if int(count) else "/good/hopped")
            case ["away", *rest]:
                self.send(302, b"", Location="/".join(rest))
            case ["html"]:
                self.send(200, b"<html>no image at all</html>")
            case ["large"]:
                self.send(200, PNG + bytes(20_000))
            case ["endless"]:
                self.stream(chunk=PNG * 10, pause_s=0.0)
            case ["slow"]:
                self.stream(chunk=PNG[:1], pause_s=0.05)
            case ["cut"]:
                self.send(200, PNG, cut_bytes=100)
            case _:
                self.send(200, b"")

    def send(self, status: int, body: bytes, *, cut_bytes: int = 0, **headers: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body) + cut_bytes))
        self.send_header("Content-Type", "image/png")  # never to be trusted
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)
        self.close_connection = bool(cut_bytes)

    def stream(self, *, chunk: bytes, pause_s: float) -> None:
        self.close_connection = True
        self.send_response(200)
        self.end_headers()
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            self.wfile.write(chunk)
            time.sleep(pause_s)

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        del code, size


@pytest.fixture
def server() -> Iterator[str]:
    Misbehaving.asked, Misbehaving.most_open = Counter(), 0
    with ThreadingHTTPServer(("127.0.0.1", 0), Misbehaving) as http:
        http.daemon_threads = True
        http.block_on_close = False
        thread = Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{http.server_address[1]}"
        http.shutdown()
        thread.join()


def record(url: str, warc: str | None = None, offset: int | None = None) -> dict[str, Any]:
    return {"url": url, "page_url": "http://site.example/", "alt": "", "warc": warc, "warc_offset": offset}


def download(folder: Path, records: list[dict[str, Any]], **changes: object) -> DownloadResult:
    params = PARAMS.model_copy(update=changes)
    store = Store(StoreParams(url=str(folder / "store"), cache=str(folder / "cache")))
    return download_images(records, params, crawl=folder / "crawl", work=folder / "work", store=store)


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


def test_sniff_mime_by_content() -> None:
    assert sniff_mime(b"\xff\xd8\xff\xe0") == "image/jpeg"
    assert sniff_mime(PNG) == "image/png"
    assert sniff_mime(b"GIF89a....") == "image/gif"
    assert sniff_mime(b"RIFF\0\0\0\0WEBPVP8 ") == "image/webp"
    assert sniff_mime(b"RIFF\0\0\0\0WAVEfmt ") is None
    assert sniff_mime(b"") is None


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("/status/404", "bad_status"),
        ("/status/503", "server_error"),
        ("/loop", "too_many_redirects"),
        ("/hop/3", "too_many_redirects"),
        ("/away/ftp://h.example/x", "bad_redirect"),
        ("/away/file:///etc/passwd", "bad_redirect"),
        ("/away/http://[", "bad_redirect"),
        ("/html", "not_an_image"),
        ("/empty", "not_an_image"),
        ("/large", "too_large"),
        ("/endless", "too_large"),
        ("/cut", "broken_response"),
    ],
)
def test_bad_answers_have_a_reason(tmp_path: Path, server: str, path: str, reason: str) -> None:
    result = download(tmp_path, [record(server + path)])
    assert [row["reason"] for row in result.removed] == [reason]
    assert not result.rows


def test_slow_answer_times_out_soon(tmp_path: Path, server: str) -> None:
    started = time.monotonic()
    result = download(tmp_path, [record(server + "/slow"), record(server + "/good/a")], timeout_s=0.3)
    assert [row["reason"] for row in result.removed] == ["timed_out"]
    assert len(result.rows) == 1
    assert time.monotonic() - started < 3


def test_dead_hosts_fail_at_once(tmp_path: Path) -> None:
    records = [record(f"http://host{i % 5}.invalid/{i}.jpg") for i in range(300)]
    records += [record(f"http://127.0.0.1:9/{i}.jpg") for i in range(10)]  # the discard port: refused
    started = time.monotonic()
    result = download(tmp_path, records)
    assert {row["reason"] for row in result.removed} == {"unreachable"}
    assert time.monotonic() - started < 3


def test_private_addresses_are_not_public() -> None:
    for address in ("127.0.0.1", "10.1.2.3", "169.254.169.254", "::1", "::ffff:127.0.0.1", "fe80::1%1", "224.0.0.1"):
        assert not is_public(address), address
    assert is_public("93.184.216.34")
    assert is_public("2606:2800:220:1::1")


def test_private_address_is_refused(tmp_path: Path, server: str) -> None:
    named = server.replace("127.0.0.1", "localhost")
    result = download(tmp_path, [record(server + "/good/a"), record(named + "/good/a")], allow_private_addresses=False)
    assert [row["reason"] for row in result.removed] == ["private_address"] * 2
    assert not Misbehaving.asked


def test_manifest_does_not_depend_on_concurrency(tmp_path: Path, server: str) -> None:
    records = [record(f"{server}/good/{i % 15}?{i}" if i % 4 else f"{server}/hop/1?{i}") for i in range(20)]
    one = download(tmp_path / "one", records, max_concurrent=1, max_per_host=1)
    assert Misbehaving.most_open == 1
    Misbehaving.most_open = 0
    many = download(tmp_path / "many", records, max_concurrent=16, max_per_host=3)
    assert 1 < Misbehaving.most_open <= 3
    assert one.rows == many.rows
    assert one.removed == many.removed


def test_rerun_fetches_only_what_is_missing_or_may_pass(tmp_path: Path, server: str) -> None:
    paths = ["/good/a", "/status/404", "/status/503"]
    log = FetchLog(tmp_path / "fetched")
    fetch_all([server + path for path in paths], PARAMS, log)
    outcomes = tmp_path / "fetched/outcomes.jsonl"
    outcomes.write_text(outcomes.read_text() + '["http://cut.exam')  # as a kill leaves it
    again = FetchLog(tmp_path / "fetched")
    fetch_all([server + path for path in [*paths, "/good/b"]], PARAMS, again)
    assert Misbehaving.asked == {"/good/a": 1, "/status/404": 1, "/status/503": 2, "/good/b": 1}
    assert again.read(server + "/good/a") == PNG + b"a"
    assert server + "/good/b" in FetchLog(tmp_path / "fetched")


def test_images_of_the_crawl_need_no_network(tmp_path: Path) -> None:
    crawl = tmp_path / "crawl"
    names = [f"http://site.example/{i}.png" for i in range(3)]
    bodies = [PNG + b"0", b"<html>", PNG + bytes(20_000)]
    offsets = write_answers(crawl / "x/a.warc.gz", list(zip(names, bodies, strict=True)))
    write_answers(crawl / "b.warc.gz", [("http://site.example/gone.png", b"")], status="404 Not Found")
    (crawl / "local.png").write_bytes(PNG + b"local")
    (crawl / "copy.png").write_bytes(PNG + b"0")
    records = [record(name, "x/a.warc.gz", offset) for name, offset in zip(names, offsets, strict=True)]
    records += [record(f"file:///{name}.png") for name in ("local", "copy", "absent")]
    records += [record("http://site.example/elsewhere.png"), record(names[0], "x/a.warc.gz", offsets[1])]
    records += [record(names[0], "x/a.warc.gz", offsets[0] + 3), record("http://site.example/gone.png", "b.warc.gz", 0)]
    result = download(tmp_path, records, network=False)
    assert [row["url"] for row in result.rows] == [names[0], "file:///local.png"]
    assert [row["reason"] for row in result.removed] == [
        "not_an_image",
        "too_large",
        "duplicate_bytes",
        "unreadable_file",
        "not_in_crawl",
        "damaged_warc",
        "damaged_warc",
        "bad_status",
    ]
    copy = result.removed[2]
    assert copy["id"] == copy["witness_id"] == result.rows[0]["id"]
    write_table(tmp_path / "removed.parquet", REMOVED, result.removed)
    reader = ShardReader(Store(StoreParams(url=str(tmp_path / "store"), cache="")))
    assert [reader.read(row) for row in result.rows] == [PNG + b"0", PNG + b"local"]
    reader.close()


def test_warc_that_is_gone_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"a\.warc is gone"):
        download(tmp_path, [record("http://site.example/a.png", "a.warc", 0)])


def test_too_many_failures_stop_the_stage(tmp_path: Path) -> None:
    records = [record(f"http://h.invalid/{i}") for i in range(4)]
    with pytest.raises(InputError, match="4 of 4 images can't be had, most of them unreachable"):
        download(tmp_path, records, max_dropped_share=0.5)
    outcomes = (tmp_path / "work/fetched/outcomes.jsonl").read_text().splitlines()
    assert [json.loads(line)[1] for line in outcomes] == ["unreachable"] * 4
