"""Parsers and odd input: a few hundred of each, the same every time. What longer fuzzing found is in their tests."""

import pytest
from fuzz_targets import TARGETS, UNASKED, Target
from hypothesis import Phase, given, settings

NUM_EXAMPLES = {"crawl": 20, "files": 60, "page": 100}  # the slow ones under the type checks of the tests


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_parser_bears_odd_input(target: Target) -> None:
    @settings(
        max_examples=NUM_EXAMPLES.get(target.name, 200), derandomize=True, deadline=None, database=None,
        phases=[Phase.generate], suppress_health_check=UNASKED,
    )  # fmt: skip
    @given(target.inputs)
    def check(value: object) -> None:
        target.check(value)

    check()
