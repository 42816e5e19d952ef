"""What our command lines share: options from the fields of a NamedTuple, and lines for whoever still reads them."""

import argparse
import inspect
import os
import sys
import typing
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

T = TypeVar("T", bound=tuple)  # a NamedTuple, which has no type of its own


def add_options(parser: argparse.ArgumentParser, kind: type[tuple], *, but: Iterable[str] = ()) -> None:
    """An option for each field of the NamedTuple `kind` that has none yet, but those in `but`; with its default."""
    known = {action.dest for action in parser._actions} | set(but)
    fields = inspect.signature(kind).parameters
    for name, hint in typing.get_type_hints(kind).items():
        if name not in known:
            (plain,) = set(typing.get_args(hint) or (hint,)) - {type(None)}
            parser.add_argument(f"--{name}", type=plain, default=fields[name].default, help="default: %(default)s")


def from_options(kind: type[T], options: Mapping[str, Any]) -> T:
    """`kind` with what its options were given; fields without an option have their default."""
    return kind(**{name: options[name] for name in typing.get_type_hints(kind) if name in options})


def show(lines: Iterable[str]) -> None:
    """Print each line as it comes, until nobody reads any more (`| head`)."""
    try:
        for line in lines:
            sys.stdout.write(line + "\n")
            sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python complains when it flushes at exit
