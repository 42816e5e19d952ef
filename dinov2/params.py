"""Parameters: values stand in params.yaml, their types and ranges in Python, and nowhere a default.

Every component's params class stands above the component and every stage's at the top of its task file; all of them
derive from `Params`. The file is the run: nothing is filled in, nothing is changed after reading.
"""

import json
import re
from collections.abc import Mapping
from copy import deepcopy
from functools import lru_cache
from io import StringIO
from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError


class InputError(Exception):
    """A person's mistake, told in one sentence: what is wrong, the value, what to do. Exit code 2."""


class Params(BaseModel):
    """Base of all parameters: frozen, strict, no unknown key, no infinity or NaN."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


P = TypeVar("P", bound=Params)

LOGIN = re.compile(  # in a URL; with "/" in a password, too, but a port is none
    r"""(?i)(?:(?<=http://)|(?<=https://))[^\s/?#'"]*@|(?<=://)[^\s/?#@:'"]*:(?!\d+(?:[/?#]|$))[^\s'"]*@"""
)
SECRET = re.compile(
    r"""(?i)([?&](?:key|sig|[\w.-]*(?:token|secret|passw(?:or)?d|pwd|signature|credential|(?:api|access|account)[_-]?key)\w*)=)"""
    r"""[^\s&#'"]+"""
)
ENVIRONMENT = {  # where else a login goes, by the URL's scheme
    "http": "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN",
    "https": "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN",
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS",
    "postgresql": "PGUSER and PGPASSWORD",
}


def read_yaml(path: Path) -> dict[str, object]:
    """The mapping in a YAML file, read by the same parser as DVC's (PyYAML would read 1e-6 as a string).

    Raises InputError if the file is absent, not YAML, or not a mapping.
    """
    try:
        values = deepcopy(_parsed(path.read_text(), str(path)))
    except OSError as error:
        raise InputError(f"{path} can't be read ({error.strerror}); run from the repository's root") from error
    except (YAMLError, UnicodeDecodeError) as error:
        where = " ".join(str(error).split())
        raise InputError(f"{path} is not valid YAML: {where}; mend that line") from error
    if not isinstance(values, dict):
        raise InputError(f"{path} holds {type(values).__name__}, not a mapping of sections; restore it from git")
    return values


@lru_cache(maxsize=8)
def _parsed(text: str, name: str) -> object:
    """Kept, since the parser takes 50 ms for params.yaml, and commands that look at all stages ask 80 times."""
    stream = StringIO(text)
    stream.name = name  # for the parser's errors
    return YAML(typ="safe", pure=True).load(stream)


def masked(text: str) -> str:
    """`text` without the logins and tokens of the URLs in it, for messages and records."""
    return SECRET.sub(r"\1...", LOGIN.sub("...@", text))


def without_credentials(url: str) -> str:
    """The same `url`; raises InputError, which does not repeat it, if it holds a password or a token.

    params.yaml is committed, and its values are seen in messages, records and MLflow; the environment is not.
    """
    if LOGIN.search(url) or SECRET.search(url):
        scheme = re.findall(r"([\w.-]+)(?:\+[\w.-]+)?://", f"{url}://")[0].lower()
        variables = ENVIRONMENT.get(scheme, f"FSSPEC_{scheme.upper()}_USERNAME, FSSPEC_{scheme.upper()}_PASSWORD, ...")
        raise InputError(
            f"a {scheme} URL holds a login or a token, which everyone would see who sees params, records or MLflow; "
            f"take it out and put it into the environment ({variables})"
        )
    return url


Url = Annotated[str, AfterValidator(without_credentials)]
"""A URL or path among the params; logins and tokens go into the environment."""


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
    except InputError as error:  # of a validator that must not repeat the value
        raise InputError(f"{where}: {error}") from None
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
        return masked(f"is not a known key (its value is {value!r}); remove it or mend its spelling")
    return masked(f"{message[0].lower()}{message[1:]}, but it is {value!r}; change it")


def flatten(values: object, prefix: str = "") -> dict[str, object]:
    """Nested mappings as {dotted.key: value}; lists stay whole."""
    if not isinstance(values, Mapping):
        return {prefix: values}
    flat: dict[str, object] = {}
    for key, value in values.items():
        flat |= flatten(value, f"{prefix}.{key}" if prefix else str(key))
    return flat
