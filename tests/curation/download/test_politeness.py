"""Hosts that ask to be left alone for longer than a pause: they are, whatever becomes of the run meanwhile."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from download_run import record, run_download
from misbehaving_server import MisbehavingServer, serving

from dinov2.curation.download.politeness import Waits

BUSY = "/busy/2/a"  # the first answer asks for 2 s
POLITENESS = {"max_per_host": 1, "max_pause_s": 0.5}


@pytest.fixture
def server() -> Iterator[MisbehavingServer]:
    with serving() as server:
        yield server


def records(server: MisbehavingServer) -> list[dict[str, object]]:
    return [record(server.url + path) for path in (BUSY, *(f"/good/{i}" for i in range(5)))]


def test_a_later_round_waits_as_long_as_the_host_asked(tmp_path: Path, server: MisbehavingServer) -> None:
    result = run_download(tmp_path, records(server), politeness=POLITENESS)
    assert len(result.rows) == 6
    assert server.asked[BUSY] == 2
    gaps = [after - before for before, after in zip(server.times, server.times[1:], strict=False)]
    assert max(gaps) > 1.9
    assert gaps.index(max(gaps)) == 2  # robots.txt, tdmrep.json and the busy one came before


def test_a_host_that_asks_for_too_much_is_not_asked_again(tmp_path: Path, server: MisbehavingServer) -> None:
    started = time.monotonic()
    busy = record(server.url + "/busy/1000/a")
    result = run_download(tmp_path, [busy, *records(server)[1:]], politeness={"max_per_host": 1, "max_wait_s": 999.0})
    assert time.monotonic() - started < 5
    assert (len(result.rows), set(result.reasons)) == (0, {"host_given_up"})
    assert sum(server.asked.values()) == 3


def test_those_who_wait_for_their_turn_ask_no_more(tmp_path: Path, server: MisbehavingServer) -> None:
    images = [record(server.url + "/busy/1000/a"), *records(server)[1:]]
    result = run_download(tmp_path, images, politeness={"max_per_host": 4, "delay_s": 0.2})
    assert set(result.reasons) == {"host_given_up"}
    assert sum(server.asked.values()) == 3


def test_those_who_pause_before_another_try_ask_no_more(tmp_path: Path, server: MisbehavingServer) -> None:
    images = [record(server.url + path) for path in ("/status/503", "/busy/1000/a")]
    politeness = {"max_per_host": 2, "max_attempts": 3, "backoff_s": 0.5}
    run_download(tmp_path, images, politeness=politeness)
    assert server.asked["/status/503"] == 1


@pytest.mark.parametrize("num_others", [0, 3])
def test_the_last_try_of_an_image_is_heeded_too(tmp_path: Path, server: MisbehavingServer, num_others: int) -> None:
    """By the other images of the host, or by the next round."""
    images = [record(server.url + "/busy/1/a"), *records(server)[1 : num_others + 1]]
    result = run_download(tmp_path, images, politeness={"max_per_host": 1, "max_attempts": 1})
    assert len(result.rows) == num_others + 1
    assert server.times[3] - server.times[2] > 0.9


def test_rules_in_a_refused_domain_are_not_asked_for(tmp_path: Path, server: MisbehavingServer) -> None:
    server.robots = 302
    server.site_headers = {"Location": "http://cdn.refused.example/robots.txt"}
    result = run_download(tmp_path, records(server)[1:])
    assert result.reasons == ["refused_domain"] * 5
    assert set(server.asked) == {"/robots.txt"}


def test_other_hosts_are_asked_meanwhile(tmp_path: Path) -> None:
    with serving() as busy, serving("127.0.0.2") as other:
        images = [*records(busy), *(record(f"{other.url}/status/503/{i}") for i in range(2))]
        run_download(tmp_path, images, politeness={**POLITENESS, "max_hosts": 1}, num_parts=1)
        assert sum(asked < busy.times[3] - 1 for asked in other.times) == 12  # of 18, so in two rounds of three


def test_a_next_start_heeds_what_a_host_asked_for(tmp_path: Path, server: MisbehavingServer) -> None:
    waits = tmp_path / "work" / "waits"
    for part in range(2):
        Waits(waits / f"{part:06d}.txt").add("127.0.0.1", 1.5)
    asked_for = time.monotonic() + 1.5
    assert len(run_download(tmp_path, records(server)[1:]).rows) == 5
    assert min(server.times) > asked_for - 0.1


def test_a_line_that_was_cut_short_costs_no_other(tmp_path: Path) -> None:
    path = tmp_path / "waits.txt"
    until = [Waits(path).add(host, 100.0) for host in ("a.example", "b.example", "a.example")]
    with path.open("a") as stream:
        stream.write("\nc.example")
    Waits(path).add("d.example", 5.0)
    found = Waits(path)
    assert found.until("a.example") == pytest.approx(until[2], abs=1e-3)
    assert found.until("b.example") == pytest.approx(until[1], abs=1e-3)
    assert found.until("c.example") == 0
    assert found.until("d.example") > time.time()
