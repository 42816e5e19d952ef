"""What the chaos is planned from and judged by."""

from chaos.__main__ import compared, plan
from chaos.blows import BLOWS

from flows.stages import STAGES


def test_the_seed_chooses_moments_and_every_kind_comes_up() -> None:
    planned = plan(3, 30, list(BLOWS))
    assert planned == plan(3, 30, list(BLOWS))
    assert planned != plan(4, 30, list(BLOWS))
    assert len(planned) == 30
    assert {one.kind for one in planned} == set(BLOWS)
    places = [STAGES.index(one.stage) for one in planned]
    assert places == sorted(places)


def test_files_that_differ_or_are_missing_are_named() -> None:
    assert compared({"a": b"1", "b": b"2"}, {"a": b"1", "b": b"2"}) == []
    assert compared({"a": b"1", "b": b"2"}, {"a": b"2", "c": b"3"}) == ["a", "b", "c"]
