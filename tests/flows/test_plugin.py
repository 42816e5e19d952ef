"""The short name of a deployment on Prefect's command line."""

import pytest

from flows.plugin import complete


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        (["/x/bin/prefect", "deployment", "run", "full-pipeline"], "full-pipeline/full-pipeline"),
        (["prefect", "deployment", "run", "dedup", "--watch"], "dedup/dedup"),
        (["prefect", "deployment", "run", "a/b"], "a/b"),
        (["prefect", "deployment", "run", "--watch", "dedup"], "--watch"),
        (["prefect", "deployment", "run", "--help"], "--help"),
        (["prefect", "deployment", "inspect", "dedup"], "dedup"),
        (["other", "deployment", "run", "dedup"], "dedup"),
    ],
)
def test_a_name_without_slash_is_completed_only_where_a_deployment_is_run(given: list[str], wanted: str) -> None:
    complete(given)
    assert given[3] == wanted


def test_a_name_after_watch_is_completed_too() -> None:
    command = ["prefect", "deployment", "run", "--watch", "dedup"]
    complete(command)
    assert command[-1] == "dedup/dedup"


def test_other_commands_are_left_alone() -> None:
    for command in (["prefect"], ["prefect", "deployment", "run"], ["prefect", "version"]):
        before = list(command)
        complete(command)
        assert command == before
