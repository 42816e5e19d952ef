"""Values of params.yaml in a stage's options: the stage looks them up itself.

dvc.yaml's commands go through a shell. What DVC fills in there is read by that shell, so that a path with a space or a
semicolon would be cut or obeyed. So they say where a value stands, `--crawl {inputs.crawl}`, and `evaluate`'s model is
taken from the name that DVC gives to the stage, `--model "$DVC_STAGE"`, with `{model}` for it in other options.
"""

import re
from collections.abc import Mapping
from pathlib import Path

from dinov2.params import InputError, read_yaml

PLACE = re.compile(r"\{(\w+)\.([^{}]+)\}")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def filled_in(stage: str, options: Mapping[str, str], kinds: Mapping[str, type], params_file: Path) -> dict[str, str]:
    """The options with values for `{section.key}` and names for `{name}`; names of DVC's stages without the stage.

    Raises InputError for a name that is not one word, or a place in params.yaml that holds no text.
    """
    filled = dict(options)
    for name in [name for name in options if kinds[name] is str]:
        value = filled[name] = options[name].removeprefix(f"{stage}@")
        if NAME.fullmatch(value) is None:
            raise InputError(f"--{name} is '{value}'; give it a name of letters, digits, '.', '_' and '-'")
        filled |= {other: text.replace(f"{{{name}}}", value) for other, text in filled.items()}
    for name, text in filled.items():
        filled[name] = PLACE.sub(lambda place: _value(params_file, place[1], place[2]), text)
    return filled


def _value(params_file: Path, section: str, key: str) -> str:
    values = read_yaml(params_file).get(section)
    value = values.get(key) if isinstance(values, dict) else None
    if not isinstance(value, str) or not value:
        raise InputError(f"{params_file.name}: {section}.{key} is {value!r}, not a path; mend it")
    return value
