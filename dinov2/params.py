"""Parameters: values stand in params.yaml, their types and ranges in Python, and nowhere a default.

Every component's params class stands above the component and every stage's at the top of its task file; all of them
derive from `Params`. The file is the run: nothing is filled in, nothing is changed after reading.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError


class InputError(Exception):
    """A person's mistake, told in one sentence: what is wrong, the value, what to do. Exit code 2."""


class Params(BaseModel):
    """Base of all parameters: frozen, strict, no unknown key, no infinity or NaN."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


P = TypeVar("P", bound=Params)


def read_yaml(path: Path) -> dict[str, object]:
    """The mapping in a YAML file, read by the same parser as DVC's (PyYAML would read 1e-6 as a string).

    Raises InputError if the file is absent, not YAML, or not a mapping.
    """
    try:
        with path.open() as stream:
            values = YAML(typ="safe", pure=True).load(stream)
    except OSError as error:
        raise InputError(f"{path} can't be read ({error.strerror}); run from the repository's root") from error
    except YAMLError as error:
        where = " ".join(str(error).split())
        raise InputError(f"{path} is not valid YAML: {where}; mend that line") from error
    if not isinstance(values, dict):
        raise InputError(f"{path} holds {type(values).__name__}, not a mapping of sections; restore it from git")
    return values


def load_section(path: Path, section: str, params_type: type[P]) -> P:
    """Section `section` of the params file `path`, validated as `params_type`.

    Validated as JSON, where strict mode takes a list for a tuple and a string for an enum, but no number for a string.
    Raises InputError with the first wrong key, its value and what is allowed.
    """
    values = read_yaml(path)
    if section not in values:
        raise InputError(f"{path} has no section '{section}'; add it, as in presets/")
    return validate(params_type, values[section], where=f"{path.name}: {section}")


def validate(params_type: type[P], values: object, *, where: str) -> P:
    """`values` as `params_type`; raises InputError naming the first wrong key (`where` says what file it is in)."""
    try:
        return params_type.model_validate_json(json.dumps(values))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join([where, *(str(part) for part in first["loc"])])
        raise InputError(f"{key}: {_explain(first['type'], first['msg'], first['input'])}") from error
    except (TypeError, ValueError) as error:
        raise InputError(f"{where}: can't be read as plain values ({error}); use numbers, strings, lists") from error


def _explain(kind: str, message: str, value: object) -> str:
    if kind == "missing":
        return "is missing; add it, as in presets/"
    if kind == "extra_forbidden":
        return f"is not a known key (its value is {value!r}); remove it or mend its spelling"
    return f"{message[0].lower()}{message[1:]}, but it is {value!r}; change it"


def flatten(values: object, prefix: str = "") -> dict[str, object]:
    """Nested mappings as {dotted.key: value}; lists stay whole."""
    if not isinstance(values, Mapping):
        return {prefix: values}
    flat: dict[str, object] = {}
    for key, value in values.items():
        flat |= flatten(value, f"{prefix}.{key}" if prefix else str(key))
    return flat
