"""Points params.yaml at the demo's input, changing nothing else in the file."""

from pathlib import Path

from ruamel.yaml import YAML

from dinov2.params import InputError, read_yaml


def set_inputs(params: Path, folder: Path) -> dict[str, str]:
    """Set `inputs.crawl`, `.seeds` and `.evaluation` of the file `params` to the subfolders of `folder`.

    Only those values are replaced in the text: comments, order and layout stay. Returns what
    changed: the former values by key.
    Raises InputError if the file has no such keys.
    """
    read_yaml(params)  # its sentences for a file that is absent or no YAML
    lines = params.read_text().splitlines(keepends=True)
    section = YAML().load("".join(lines)).get("inputs")
    former: dict[str, str] = {}
    for key in ("crawl", "seeds", "evaluation"):
        if not isinstance(section, dict) or not isinstance(section.get(key), str):
            raise InputError(f"{params} has no inputs.{key}; restore the file from git or a preset")
        old, new = section[key], (folder / key).as_posix()
        if old == new:
            continue
        row, column = section.lc.value(key)  # pyright: ignore[reportAttributeAccessIssue]
        before, after = lines[row][:column], lines[row][column:]
        if not after.startswith(old):
            raise InputError(f"{params}: inputs.{key} is quoted or spans lines ({after.strip()}); write it plainly")
        lines[row] = before + new + after.removeprefix(old)
        former[f"inputs.{key}"] = old
    if former:
        temporary = params.with_name(params.name + ".tmp")
        temporary.write_text("".join(lines))
        temporary.replace(params)
    return former
