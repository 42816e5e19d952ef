"""The checker of shapes and types in tests: beartype, but for methods that return `Self`.

beartype knows what `Self` is only where it decorates the class; jaxtyping's import hook decorates each method.
"""

import inspect
from collections.abc import Callable
from typing import Any, Self

from beartype import beartype


def check(function: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate a function (or class) of the packages under test."""
    if inspect.isfunction(function) and Self in inspect.get_annotations(function).values():
        return function
    return beartype(function)
