"""Opt-outs and robots.txt: who says no, in which of the ways, and junk that says nothing."""

import time

import pytest

from dinov2.curation.crawl.optout import (
    OptOutParams,
    headers_opt_out,
    matches,
    meta_opt_out,
    parse_tdmrep,
    tdmrep_opt_out,
)
from dinov2.curation.crawl.robots import Robots

ALL = OptOutParams(robots_txt=True, directives=["noai", "noimageai", "noindex", "none"], tdm_reservation=True)
NONE = OptOutParams(robots_txt=False, directives=[], tdm_reservation=False)
AGENT = "Pipeline-Bot/0.1 (research crawler)"


@pytest.mark.parametrize(
    ("value", "rule"),
    [
        ("noai", "x_robots_tag_noai"),
        ("NoFollow , NOIMAGEAI", "x_robots_tag_noimageai"),
        ("all", None),
        ("otherbot: noindex, none", None),
        ("otherbot: noindex, pipeline-bot: none", "x_robots_tag_none"),
        ("*: noai", "x_robots_tag_noai"),
        ("unavailable_after: 25 Jun 2010 15:00:00 PST, noindex", "x_robots_tag_noindex"),
        ("max-image-preview:none", None),
        (":,:,,: ,", None),
    ],
)
def test_x_robots_tag(value: str, rule: str | None) -> None:
    assert headers_opt_out([("content-type", "noai"), ("X-Robots-Tag", value)], ALL, AGENT) == rule
    assert headers_opt_out([("X-Robots-Tag", value)], NONE, AGENT) is None


def test_meta_robots_for_everyone_or_for_us() -> None:
    assert meta_opt_out([("Robots", "follow, noai")], ALL, AGENT) == "meta_robots_noai"
    assert meta_opt_out([("pipeline-bot", "noindex")], ALL, AGENT) == "meta_robots_noindex"
    assert meta_opt_out([("otherbot", "noindex"), ("description", "noai")], ALL, AGENT) is None
    assert meta_opt_out([("robots", "noai")], NONE, AGENT) is None


def test_tdm_reservation_by_header_meta_and_file() -> None:
    assert headers_opt_out([("TDM-Reservation", " 1 ")], ALL, AGENT) == "tdm_header"
    assert headers_opt_out([("tdm-reservation", "0")], ALL, AGENT) is None
    assert meta_opt_out([("tdm-reservation", "1")], ALL, AGENT) == "tdm_meta"
    art, rest = b'{"location": "/art/*.jpg$", "tdm-reservation": 1}', b'{"location": "/", "tdm-reservation": 0}'
    rules = parse_tdmrep(b"[" + rest + b"," + art + b"]")
    assert tdmrep_opt_out(rules, ALL, "http://a.example/art/x/y.jpg") == "tdm_file"
    assert tdmrep_opt_out(rules, ALL, "http://a.example/art/x/y.jpg?size=2") is None
    assert tdmrep_opt_out(rules, ALL, "http://a.example/free.jpg") is None
    for name, value in (("TDM-Reservation", "1"), ("tdm-reservation", "1")):
        assert headers_opt_out([(name, value)], NONE, AGENT) is None
        assert meta_opt_out([(name, value)], NONE, AGENT) is None
    assert tdmrep_opt_out(rules, NONE, "http://a.example/art/x/y.jpg") is None


@pytest.mark.parametrize(
    "junk", [b"", b"\xff\xfe", b"[" * 100_000, b'{"location": 3}', b"[[1], null, {}]", b'{"location": "/', b"9" * 9999]
)
def test_junk_tdmrep_says_nothing(junk: bytes) -> None:
    assert parse_tdmrep(junk) == []


@pytest.mark.parametrize(
    ("pattern", "path", "is_match"),
    [
        ("/a", "/ab", True),
        ("/a$", "/ab", False),
        ("/a$", "/a", True),
        ("/*b", "/aab/c", True),
        ("*/b*d$", "/a/bcdcd", True),
        ("/a*a$", "/a", False),
        ("/*.jpg$", "/x.jpg.png", False),
        ("/**$", "/anything", True),
        ("", "/anything", True),
    ],
)
def test_location_patterns(pattern: str, path: str, *, is_match: bool) -> None:
    assert matches(pattern, path) is is_match


def test_robots_names_our_agent_before_everyone() -> None:
    ours = b"User-agent: PIPELINE-bot\nDisallow: /private\n\nUser-agent: *\nDisallow: /\n"
    assert Robots(ours, AGENT).allows("http://a.example/public")
    assert not Robots(ours, AGENT).allows("http://a.example/private/x")
    others = b"User-agent: otherbot\nUser-agent: crawler\nDisallow: /\n"
    assert Robots(others, AGENT).allows("http://a.example/")  # `crawler` stands in our comment, not in our name
    both = b"User-agent: otherbot\nUser-agent: *\nDisallow: /*.gif$\n"
    assert not Robots(both, AGENT).allows("http://a.example/a.gif")
    assert Robots(both, AGENT).allows("http://a.example/a.gif?x")


@pytest.mark.parametrize("junk", [b"", b"\xff\xfe\0\0", b"<html>404</html>", b"Disallow: /", b"user-agent", b":\n" * 9])
def test_junk_robots_allows(junk: bytes) -> None:
    assert Robots(junk, AGENT).allows("http://a.example/x")


def test_robots_of_megabytes_is_cut_at_a_line() -> None:
    head = b"User-agent: *\nDisallow: /no\n"
    filler = b"# " + b"x" * 97 + b"\n"
    assert not Robots(head + filler * 50_000, AGENT).allows("http://a.example/no")
    cut = (head + filler * 6_000)[: 500 * 1024 - 11] + b"\nDisallow: /not-this\n"
    assert Robots(cut, AGENT).allows("http://a.example/n")


def test_robots_with_many_agents_and_rules_stays_small() -> None:
    data = b"".join(b"user-agent: a%d\n" % i for i in range(15_000))
    data += b"".join(b"disallow: /*%d*a*b\n" % i for i in range(15_000))
    started = time.process_time()
    assert Robots(data, AGENT).allows("http://a.example/" + "a" * 8000)
    assert time.process_time() - started < 5  # it was 20 GB and minutes
