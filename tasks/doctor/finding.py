"""A line of the doctor's answer."""

from typing import Literal, NamedTuple


class Finding(NamedTuple):
    """What a check found."""

    level: Literal["ok", "warning", "problem"]
    """A warning is something that may be meant; a problem would end a run."""
    what: str
    """With what to do, if there is something to do."""


def ok(what: str) -> Finding:
    """As it should be."""
    return Finding("ok", what)


def warning(what: str) -> Finding:
    """May be meant."""
    return Finding("warning", what)


def problem(what: str) -> Finding:
    """Would end a run."""
    return Finding("problem", what)
