"""The download stage: pinned manifest of a tiny crawl (when it changes, raise VERSION), and kills at any moment."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from download_run import changed, record, run_download
from misbehaving_server import GIF, MisbehavingServer, png, serving

from dinov2.records import IMAGE_RECORDS, write_table
from tasks import download

ROOT = Path(__file__).parents[2]


def test_outputs_of_a_tiny_crawl(tmp_path: Path) -> None:
    crawl = tmp_path / "crawl"
    crawl.mkdir()
    jpeg = b"\xff\xd8\xff\xc0\0\x0b\x08\0\2\0\3\1\1\x11\0"  # as much as is looked at
    bodies = {"a.gif": GIF, "copy.gif": GIF, "b.jpg": jpeg, "c.png": b"<html>"}
    for name, body in bodies.items():
        (crawl / name).write_bytes(body)
    urls = [f"file:///{name}" for name in bodies] + ["https://site.example/far.png"]
    result = run_download(tmp_path, [record(url) for url in urls], network=False)
    pinned = (
        [("file:///a.gif", "image/gif", 512, 29), ("file:///b.jpg", "image/jpeg", 2560, 15)],
        [
            ("file:///copy.gif", "duplicate_bytes"),
            ("file:///c.png", "not_an_image"),
            ("https://site.example/far.png", "not_in_crawl"),
        ],
        "1f05ece74e0348d5c7b55052b43c1926",
    )
    found = (
        [(row["url"], row["mime"], row["offset"], row["length"]) for row in result.rows],
        [(row["url"], row["reason"]) for row in result.removed],
        result.rows[0]["shard"][:32],
    )
    assert (download.VERSION, *found) == (3, *pinned)
    assert list(json.loads((tmp_path / "out/blobs.json").read_text())) == [result.rows[0]["shard"]]


@pytest.fixture
def servers() -> Iterator[list[MisbehavingServer]]:
    with serving("127.0.0.1") as one, serving("127.0.0.2") as two:
        one.good_s = two.good_s = 0.02
        yield [one, two]


def wait_for(event: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 60
    while not event() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.001)


def outputs(folder: Path) -> dict[str, bytes]:
    """All that a run leaves in its output and store."""
    paths = [path for place in ("out", "store") for path in (folder / place).rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(paths)}


def test_kills_at_any_moment_change_no_byte(tmp_path: Path, servers: list[MisbehavingServer]) -> None:
    crawl = tmp_path / "killed" / "crawl"
    crawl.mkdir(parents=True)
    for i in range(20):
        (crawl / f"{i}.png").write_bytes(png(f"{i % 15}", num_bytes=50_000))
    records = [record(f"{server.url}/good/{i % 70}?{i}") for i in range(90) for server in servers]
    records += [record(f"{servers[0].url}/away/{servers[1].url}/good/{i}") for i in range(70, 80)]
    records += [record(f"file:///{i}.png") for i in range(20)]
    changes: dict[str, Any] = {"records_per_part": 40, "politeness": {"max_per_host": 2}}
    folder = tmp_path / "killed"
    write_table(folder / "records.parquet", IMAGE_RECORDS, records)

    def num_asked() -> int:
        return sum(len(server.times) for server in servers)

    def start(num_workers: int) -> subprocess.Popen[bytes]:
        runner, params = ROOT / "tests" / "download_run.py", changed(**changes).model_dump_json()
        command = [sys.executable, str(runner), str(folder), params, str(num_workers)]
        return subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)})

    seen: dict[str, int] = {}
    for moment, event in {
        "while looking": (folder / "work" / "found").exists,
        "early in a visit": lambda: num_asked() >= 20,
        "late in a visit": lambda: num_asked() >= seen["early in a visit"] + 40,
        "while packing": (folder / "work" / "packing").exists,
    }.items():
        process = start(num_workers=1)
        wait_for(event, process)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, f"it ended before it was killed {moment}"
        assert not (folder / "out" / "manifest.parquet").exists()
        seen[moment] = num_asked()
    with start(num_workers=3) as process:
        assert process.wait() == 0
    num_twice = sum(count - 1 for server in servers for path, count in server.asked.items() if "good" in path)
    assert num_twice <= 2 * 4 * 2  # only what was under way at a kill is asked again: hosts, places, kills of visits
    (tmp_path / "whole").mkdir()
    crawl.rename(tmp_path / "whole" / "crawl")
    whole = run_download(tmp_path / "whole", records, **changes)
    assert len(whole.rows) > 70
    assert outputs(folder) == outputs(tmp_path / "whole")
