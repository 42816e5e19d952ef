"""The log of fetches: what was noted is there after a kill, what was not is gone without a trace."""

from pathlib import Path

import pytest
from misbehaving_server import png

from dinov2.curation.download.fetch_log import Body, Failure, FetchLog, Moved

BODIES = [png(f"body {i}") for i in range(3)]


def fill(folder: Path) -> None:
    with FetchLog(folder) as log:
        for position, data in enumerate([*BODIES, BODIES[0]]):
            log.add_body(position * 10, data, max_bytes=1000, max_pixels=100)
        log.add_body(50, bytes(2000), max_bytes=1000, max_pixels=100)
        log.add(60, Failure("timed_out", is_passing=True))
        log.add(70, Moved("http://h.example/a", 2))


def body(log: FetchLog, position: int) -> bytes:
    outcome = log.outcomes[position]
    assert isinstance(outcome, Body)
    return log.bodies_path.read_bytes()[outcome.offset : outcome.offset + outcome.length]


def test_next_start_knows_all_but_what_may_pass(tmp_path: Path) -> None:
    fill(tmp_path)
    with FetchLog(tmp_path) as log:
        assert [body(log, position) for position in (0, 10, 20, 30)] == [*BODIES, BODIES[0]]
        assert log.outcomes[50] == Failure("too_large", is_passing=False)
        assert log.outcomes[70] == Moved("http://h.example/a", 2)
        assert 60 not in log.outcomes
    assert (tmp_path / "bodies").stat().st_size == sum(map(len, BODIES))  # equal ones are kept once


@pytest.mark.parametrize(
    "tail", [b'[80, "Bo', b'[80, "Body", "x"]', b'[80, "Unknown"]\n', b"\xff\0\n", b'[80, "Moved", 1, 2, 3]\n']
)
def test_half_a_line_is_cut_off(tmp_path: Path, tail: bytes) -> None:
    fill(tmp_path)
    path = tmp_path / "outcomes.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole + tail)
    with (tmp_path / "bodies").open("ab") as bodies:
        bodies.write(b"half a body")
    with FetchLog(tmp_path) as log:
        assert 80 not in log.outcomes
        log.add_body(90, png("next"), max_bytes=1000, max_pixels=100)
    assert path.read_bytes().startswith(whole)
    with FetchLog(tmp_path) as log:
        assert body(log, 90) == png("next")
        assert body(log, 20) == BODIES[2]


def test_line_that_tells_of_a_lost_body_is_cut_off(tmp_path: Path) -> None:
    fill(tmp_path)
    with (tmp_path / "bodies").open("r+b") as bodies:
        bodies.truncate(len(BODIES[0]) + 5)  # a machine that stopped: the log was written through, the bodies were not
    with FetchLog(tmp_path) as log:
        assert list(log.outcomes) == [0]
        log.add_body(10, BODIES[1], max_bytes=1000, max_pixels=100)
        assert body(log, 10) == BODIES[1]
