"""Every value that a run has is checked and read: presets validate, and no field is there for nobody."""

import ast
import re
import typing
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from pathlib import Path

import pytest
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from dinov2.params import InputError, Params, load_section, read_yaml, validate
from dinov2.store import StoreParams
from flows.params import FlowsParams
from tasks.gates import Gates
from tasks.resources import LaunchParams
from tasks.server import TrackingParams

ROOT = Path(__file__).parents[1]
STAGES = sorted(typing.cast(dict[str, object], read_yaml(ROOT / "dvc.yaml")["stages"]))
ELSEWHERE: dict[str, type[Params]] = {
    "store": StoreParams,
    "flows": FlowsParams,
    "launch": LaunchParams,
    "tracking": TrackingParams,
}
FILES = [ROOT / "params.yaml", *sorted((ROOT / "presets").glob("*.yaml"))]


def params_type(section: str) -> type[Params]:
    """The class that validates a section of params.yaml."""
    if section in ELSEWHERE:
        return ELSEWHERE[section]
    return typing.get_type_hints(import_module(f"tasks.{section}").run)["params"]


def nested(model: type[BaseModel]) -> Iterator[type[BaseModel]]:
    """`model` and every params class within its fields."""
    yield model
    for field in model.model_fields.values():
        pending: list[object] = [field.annotation]
        while pending:
            annotation = pending.pop()
            pending.extend(typing.get_args(annotation))
            if isinstance(annotation, type) and issubclass(annotation, BaseModel) and annotation is not model:
                yield from nested(annotation)


def says_itself(field: FieldInfo) -> bool:
    """Whether a field is itself params, whose class says what it is, or can have one value only."""
    arguments = typing.get_args(field.annotation)
    if typing.get_origin(field.annotation) is typing.Literal and len(arguments) == 1:
        return True
    return any(isinstance(kind, type) and issubclass(kind, BaseModel) for kind in (field.annotation, *arguments))


@cache
def names_read() -> set[str]:
    """Names that the code reads as attributes, in templates too, or takes by keyword (from `**params.model_dump()`)."""
    names: set[str] = set()
    for package in ("dinov2", "tasks", "flows"):
        for path in sorted((ROOT / package).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                    names.add(node.attr)
                elif isinstance(node, ast.FunctionDef):
                    names |= {argument.arg for argument in node.args.kwonlyargs}
        for path in sorted((ROOT / package).rglob("*.j2")):
            names |= set(re.findall(r"\.(\w+)", path.read_text()))
    return names


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_file_validates_whole(path):
    sections = read_yaml(path)
    assert set(sections) == {"inputs", "models", "gates", *STAGES, *ELSEWHERE}
    assert list(sections)[-2:] == ["launch", "tracking"]
    for section in (*STAGES, *ELSEWHERE):
        load_section(path, section, params_type(section))
    models = typing.cast(dict[str, str], sections["models"])
    students = typing.cast(dict[str, object], typing.cast(dict[str, object], sections["distill"])["students"])
    assert {name for name, place in models.items() if place == f"distill/{name}"} == set(students)
    assert set(typing.cast(dict[str, list[str]], sections["report"])["models"]) == set(models) - {"baselines"}
    Gates.model_validate(sections["gates"])
    assert set(typing.cast(dict[str, str], sections["inputs"])) == {"crawl", "seeds", "evaluation"}


@pytest.mark.parametrize("section", [*STAGES, *ELSEWHERE])
def test_every_field_is_read_by_the_code(section):
    read = names_read()
    unread = [
        f"{model.__name__}.{name}"
        for model in nested(params_type(section))
        for name in model.model_fields
        if name not in read
    ]
    assert unread == []


@pytest.mark.parametrize("section", [*STAGES, *ELSEWHERE])
def test_every_field_has_a_docstring_and_no_default(section):
    for model in nested(params_type(section)):
        assert not [name for name, field in model.model_fields.items() if not field.is_required()]
        source = Path(typing.cast(str, import_module(model.__module__).__file__))
        (definition,) = (
            node
            for node in ast.walk(ast.parse(source.read_text()))
            if isinstance(node, ast.ClassDef) and node.name == model.__name__
        )
        for node, following in zip(definition.body, [*definition.body[1:], None], strict=True):
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                if says_itself(model.model_fields[node.target.id]):
                    continue
                described = isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant)
                assert described, f"{model.__name__}.{node.target.id} has no line that says what it is"


@pytest.mark.parametrize("section", [*STAGES, *ELSEWHERE])
def test_unknown_missing_and_mistyped_keys_are_named(section):
    values = typing.cast(dict[str, object], read_yaml(ROOT / "params.yaml")[section])
    first = next(iter(values))
    with pytest.raises(InputError, match=rf"{section}\.surplus: is not a known key"):
        validate(params_type(section), {**values, "surplus": 1}, where=section)
    with pytest.raises(InputError, match=rf"{section}\.{first}: is missing"):
        validate(params_type(section), {key: value for key, value in values.items() if key != first}, where=section)
    with pytest.raises(InputError, match=rf"^{section}\.{first}[.:]"):
        validate(params_type(section), {**values, first: {"a": "mapping"}}, where=section)


def test_a_file_that_is_no_text_is_a_mistake(tmp_path):
    (tmp_path / "params.yaml").write_bytes(b"a: \xff")
    with pytest.raises(InputError, match="is not valid YAML: 'utf-8' codec"):
        read_yaml(tmp_path / "params.yaml")


def test_what_a_caller_does_with_params_it_read_is_not_read_by_others(tmp_path):
    (tmp_path / "params.yaml").write_text("a: {b: 1}")
    values: dict[str, typing.Any] = read_yaml(tmp_path / "params.yaml")
    values["a"]["b"] = 2
    assert read_yaml(tmp_path / "params.yaml") == {"a": {"b": 1}}
