"""Fetching: every limit, every courtesy, and every kind of trouble that a server can be."""

import gzip
import socket
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import pytest
from download_run import changed, record, run_download, store_in
from misbehaving_server import MisbehavingServer, serving

from dinov2.curation.download import addresses
from dinov2.curation.download.addresses import is_public
from dinov2.curation.download.fetch import host_part
from dinov2.curation.download.politeness import parse_retry_after, pause_s
from dinov2.shards import ShardReader


@pytest.fixture
def server() -> Iterator[MisbehavingServer]:
    with serving() as server:
        yield server


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("/status/404", "bad_status"),
        ("/status/503", "server_error"),
        ("/loop", "too_many_redirects"),
        ("/hop/3", "too_many_redirects"),
        ("/away/ftp://h.example/x", "bad_redirect"),
        ("/away/file:///etc/passwd", "bad_redirect"),
        ("/away/data:image/png;base64,AAAA", "bad_redirect"),
        ("/away/http://[", "bad_redirect"),
        ("/away/", "bad_redirect"),
        ("/away/http://cdn.refused.example/a.png", "refused_domain"),
        ("/html", "not_an_image"),
        ("/empty", "not_an_image"),
        ("/html-gif", "malformed_image"),
        ("/jpeg-junk", "malformed_image"),
        ("/large", "too_large"),
        ("/endless", "too_large"),
        ("/size/30000/30000", "too_many_pixels"),
        ("/size/1/1000001", "too_many_pixels"),
        ("/cut", "broken_response"),
        ("/reset", "broken_response"),
        ("/flood", "broken_response"),
        ("/gzip-bomb", "content_encoding"),
        ("/quiet-gzip", "not_an_image"),
        ("/headed/X-Robots-Tag/noai", "x_robots_tag_noai"),
        ("/headed/x-robots-tag/test-bot: noimageai", "x_robots_tag_noimageai"),
        ("/headed/TDM-Reservation/1", "tdm_header"),
    ],
)
def test_bad_answer_has_its_reason(tmp_path: Path, server: MisbehavingServer, path: str, reason: str) -> None:
    result = run_download(tmp_path, [record(server.url + path.replace(" ", "%20")), record(server.url + "/good/a")])
    assert result.reasons == [reason]
    assert [row["url"] for row in result.rows] == [server.url + "/good/a"]


@pytest.mark.parametrize(
    ("path", "limits", "reason"),
    [
        ("/slow", {"patience_s": 0.3, "min_bytes_per_s": 1000.0}, "too_slow"),
        ("/slow", {"timeout_s": 0.3, "min_bytes_per_s": 1.0}, "timed_out"),
        ("/silent", {"patience_s": 0.2}, "timed_out"),
        ("/continue", {"patience_s": 0.2}, "timed_out"),
    ],
)
def test_slow_answer_ends_soon(
    tmp_path: Path, server: MisbehavingServer, path: str, limits: dict[str, float], reason: str
) -> None:
    started = time.monotonic()
    records = [record(server.url + path), record(server.url + "/good/a")]
    result = run_download(tmp_path, records, http=limits, politeness={"max_attempts": 1})
    assert result.reasons == [reason]
    assert len(result.rows) == 1
    assert time.monotonic() - started < 3


def test_answer_that_is_slow_but_steady_is_waited_for(tmp_path: Path, server: MisbehavingServer) -> None:
    result = run_download(tmp_path, [record(server.url + "/steady")], http={"patience_s": 0.4, "min_bytes_per_s": 20.0})
    assert len(result.rows) == 1


def test_dead_hosts_fail_at_once(tmp_path: Path) -> None:
    records = [record(f"http://host{i % 5}.invalid/{i}.jpg") for i in range(300)]
    records += [record(f"http://127.0.0.1:9/{i}.jpg") for i in range(10)]  # the discard port: refused
    started = time.monotonic()
    result = run_download(tmp_path, records, records_per_part=1000)
    assert set(result.reasons) == {"unreachable"}
    assert time.monotonic() - started < 3


def test_private_addresses_are_not_public() -> None:
    for address in ("127.0.0.1", "10.1.2.3", "169.254.169.254", "100.64.0.1", "0.0.0.0", "224.0.0.1", "::1", "::"):
        assert not is_public(address), address
    for address in ("::ffff:127.0.0.1", "fe80::1%1", "fec0::1", "2002:7f00:1::", "64:ff9b::7f00:1", "2001:0:7f00:1::"):
        assert not is_public(address), address
    assert is_public("93.184.216.34")
    assert is_public("2606:2800:220:1::1")


def test_private_address_is_refused_whatever_its_name(tmp_path: Path, server: MisbehavingServer) -> None:
    port = server.server_address[1]
    names = ("127.0.0.1", "localhost", "2130706433", "0x7f.1", "127.1", "[::ffff:127.0.0.1]", "[::1]")
    records = [record(f"http://{name}:{port}/good/a") for name in names]
    result = run_download(tmp_path, records, http={"allow_private_addresses": False})
    assert result.reasons == ["private_address"] * len(names)
    assert not server.asked


def test_private_address_is_refused_after_a_redirect(
    tmp_path: Path, server: MisbehavingServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(addresses, "is_public", lambda address: address == "127.0.0.1")  # no server here is public
    with serving("127.0.0.2") as inside:
        records = [record(f"{server.url}/away/{inside.url}/good/secret"), record(f"{server.url}/good/a")]
        result = run_download(tmp_path, records, http={"allow_private_addresses": False})
    assert result.reasons == ["private_address"]
    assert not inside.asked


def test_name_with_any_private_address_is_refused(
    tmp_path: Path, server: MisbehavingServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (ip, 0)) for ip in ("93.184.216.34", "127.0.0.1")]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    url = f"http://both.example:{server.server_address[1]}/good/a"
    assert run_download(tmp_path, [record(url)], http={"allow_private_addresses": False}).reasons == ["private_address"]
    assert not server.asked


def test_name_that_is_bound_anew_leads_nowhere(
    tmp_path: Path, server: MisbehavingServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = ["93.184.216.34", "127.0.0.1"]  # what is vetted, and what a second look-up would say

    def look_up(*_: object, **__: object) -> list[tuple[object, ...]]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (answers.pop(0) if answers else "127.0.0.1", 0))]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    url = f"http://rebinding.example:{server.server_address[1]}/good/a"
    http = {"allow_private_addresses": False, "patience_s": 0.2}
    result = run_download(tmp_path, [record(url)], http=http, politeness={"max_attempts": 1})
    assert result.reasons == ["private_address"]  # from the second round; in the first, nobody answers
    assert not server.asked


def test_failures_that_pass_are_tried_again(tmp_path: Path, server: MisbehavingServer) -> None:
    paths = ["/flaky/1/a", "/flaky/3/b", "/flaky/6/c", "/status/503"]
    result = run_download(tmp_path, [record(server.url + path) for path in paths])
    assert [row["url"] for row in result.rows] == [server.url + path for path in paths[:2]]  # in round 1, and in 2
    assert result.reasons == ["server_error"] * 2
    assert [server.asked[path] for path in paths] == [2, 4, 6, 6]


def test_retry_after_is_heeded_by_all_that_ask_the_host(tmp_path: Path, server: MisbehavingServer) -> None:
    server.good_s = 0.05
    records = [record(server.url + path) for path in ("/busy/1/a", *(f"/good/{i}" for i in range(8)))]
    result = run_download(tmp_path, records, politeness={"max_per_host": 2})
    assert len(result.rows) == 9
    gaps = [after - before for before, after in zip(server.times, server.times[1:], strict=False)]
    assert max(gaps) > 0.9
    assert gaps.index(max(gaps)) < 6  # robots.txt, tdmrep.json, the busy one and what was under way


def test_retry_after_is_a_number_or_a_date() -> None:
    now = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    assert parse_retry_after(" 120 ", now) == 120
    assert parse_retry_after(format_datetime(now + timedelta(seconds=90), usegmt=True), now) == 90
    assert parse_retry_after("Fri, 02 Jan 2026 03:05:05", now) == 60
    assert parse_retry_after("Fri, 02 Jan 1970 00:00:00 GMT", now) == 0
    for value in ("", "-1", "soon", "1.5", "9" * 5000 + "x", "Fri, 99 Jan 2026 03:05:05 GMT", "\u0661"):
        assert parse_retry_after(value, now) is None


def test_pauses_grow_and_are_the_same_in_every_run() -> None:
    politeness = changed(politeness={"backoff_s": 1.0, "max_pause_s": 5.0}).politeness
    urls = [f"http://h.example/{i}" for i in range(50)]
    pauses = [[pause_s(politeness, url, num_failed) for url in urls] for num_failed in (1, 2, 9)]
    assert pauses[0] == [pause_s(politeness, url, 1) for url in urls]
    assert all(0.5 <= pause <= 1.5 for pause in pauses[0])
    assert all(1.0 <= pause <= 3.0 for pause in pauses[1])
    assert set(pauses[2]) == {5.0}
    assert len(set(pauses[0])) == 50
    other_seed = changed(politeness={"backoff_s": 1.0, "seed": 1}).politeness
    assert pauses[0] != [pause_s(other_seed, url, 1) for url in urls]


def test_host_is_asked_by_few_and_not_too_often(tmp_path: Path, server: MisbehavingServer) -> None:
    server.good_s = 0.02
    records = [record(f"{server.url}/good/{i}") for i in range(12)]
    run_download(tmp_path / "a", records, politeness={"max_per_host": 3})
    assert server.most_open == 3
    server.times.clear()
    run_download(tmp_path / "b", records, politeness={"delay_s": 0.05})
    assert server.times[-1] - server.times[0] > 0.05 * (len(server.times) - 1) - 0.04  # single gaps jitter


def test_crawl_delay_is_heeded_up_to_the_limit(tmp_path: Path, server: MisbehavingServer) -> None:
    server.robots = b"User-agent: *\nCrawl-delay: 1000"
    records = [record(f"{server.url}/good/{i}") for i in range(4)]
    result = run_download(tmp_path, records, politeness={"max_crawl_delay_s": 0.2})
    assert len(result.rows) == 4
    assert 3 * 0.2 - 0.04 < server.times[-1] - server.times[-4] < 5


def test_robots_txt_is_asked_once_and_heeded(tmp_path: Path, server: MisbehavingServer) -> None:
    server.robots = b"User-agent: other\nDisallow: /\nUser-agent: test-bot\nDisallow: /good/private"
    records = [record(f"{server.url}/good/{name}/{i}") for i in range(5) for name in ("private", "public")]
    records.append(record(f"{server.url}/away/{server.url}/good/private/6"))
    result = run_download(tmp_path, records)
    assert result.reasons == ["robots_txt"] * 6
    assert server.asked["/robots.txt"] == server.asked["/.well-known/tdmrep.json"] == 1
    assert not any(path.startswith("/good/private") for path in server.asked)
    ignoring = {"robots_txt": False, "tdm_reservation": False}
    assert len(run_download(tmp_path / "b", records, opt_out=ignoring).rows) == 11
    assert server.asked["/robots.txt"] == 1


def test_site_is_left_alone_while_its_robots_txt_is_not_to_be_had(tmp_path: Path, server: MisbehavingServer) -> None:
    server.robots = 503
    result = run_download(tmp_path, [record(f"{server.url}/good/{i}") for i in range(9)])
    assert result.reasons == ["robots_unavailable"] * 9
    assert set(server.asked) == {"/robots.txt"}
    assert server.asked["/robots.txt"] == 3 * 2  # rounds, attempts


def test_rules_that_a_server_encodes_unasked_are_heeded(tmp_path: Path, server: MisbehavingServer) -> None:
    server.robots = gzip.compress(b"User-agent: *\nDisallow: /good/a")
    server.tdmrep = gzip.compress(b'[{"location": "/good/b", "tdm-reservation": 1}]')
    server.site_headers = {"Content-Encoding": "gzip"}
    result = run_download(tmp_path, [record(f"{server.url}/good/{name}") for name in ("a", "b", "c")])
    assert sorted(result.reasons) == ["robots_txt", "tdm_file"]


def test_nonsense_in_place_of_rules_forbids_nothing(tmp_path: Path, server: MisbehavingServer) -> None:
    server.tdmrep = b"<html>"
    for robots, name, value in ((b"<html>", "Content-Encoding", "gzip"), (302, "Location", "mailto:me@a.example")):
        server.robots, server.site_headers = robots, {name: value}
        assert len(run_download(tmp_path / name, [record(f"{server.url}/good/a")]).rows) == 1


def test_reservation_of_a_site_is_heeded(tmp_path: Path, server: MisbehavingServer) -> None:
    server.tdmrep = b'[{"location": "/good/b", "tdm-reservation": 1}]'
    result = run_download(tmp_path, [record(f"{server.url}/good/{name}") for name in ("a", "b", "c")])
    assert result.reasons == ["tdm_file"]


def test_host_that_only_fails_is_given_up(tmp_path: Path, server: MisbehavingServer) -> None:
    records = [record(f"{server.url}/status/500/{i}") for i in range(60)]
    result = run_download(tmp_path, records, politeness={"give_up_after": 5, "backoff_s": 0.0})
    assert set(result.reasons) == {"server_error", "host_given_up"}
    assert sum(server.asked.values()) < 3 * 2 * (5 + 4) + 10


def test_location_outside_ascii_is_sent_back_as_it_came(tmp_path: Path, server: MisbehavingServer) -> None:
    result = run_download(tmp_path, [record(server.url + "/bytes")])
    assert len(result.rows) == 1
    assert server.asked["/good/%FF%FE"] == 1


def test_what_follows_a_short_length_spoils_no_other_image(tmp_path: Path, server: MisbehavingServer) -> None:
    records = [record(server.url + path) for path in ("/short", "/good/a", "/good/b")]
    result = run_download(tmp_path, records, politeness={"max_per_host": 1})
    assert len(result.rows) == 3
    reader = ShardReader(store_in(tmp_path))
    assert [reader.read(row)[-8:-4] == b"IEND" for row in result.rows] == [False, True, True]  # filter will drop it
    reader.close()


def test_image_with_a_script_behind_it_is_kept_as_it_is(tmp_path: Path, server: MisbehavingServer) -> None:
    result = run_download(tmp_path, [record(server.url + "/gif-script")])
    assert [row["mime"] for row in result.rows] == ["image/gif"]


def test_redirects_lead_from_part_to_part(tmp_path: Path) -> None:
    mine = "127.0.0.1"
    other = next(f"127.0.0.{i}" for i in range(2, 99) if host_part(f"127.0.0.{i}", 2) != host_part(mine, 2))
    with serving(mine) as first, serving(other) as second:
        there = f"{first.url}/away/{second.url}/good/a"
        and_back = f"{first.url}/away/{second.url}/away/{first.url}/good/b"
        again = f"{first.url}/away/{second.url}/away/{first.url}/away/{second.url}/good/c"
        result = run_download(tmp_path, [record(url) for url in (there, and_back, again)])
        assert [row["url"] for row in result.rows] == [there, and_back]  # a record keeps its own URL
        assert result.reasons == ["too_many_redirects"]
        assert second.asked["/good/a"] == first.asked["/good/b"] == 1
