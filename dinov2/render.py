"""Pages and cards from templates."""

from collections.abc import Callable, Mapping
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined


def rendered(package: str, name: str, *, filters: Mapping[str, Callable[..., Any]] | None = None, **values: Any) -> str:
    """A template of the folder templates/ of `package`, filled in; values are escaped in HTML, not in Markdown."""
    environment = Environment(
        loader=PackageLoader(package),
        autoescape=name.endswith(".html.j2"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(filters or {})
    return environment.get_template(name).render(**values)
