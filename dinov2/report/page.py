"""The report: one HTML page that loads nothing, from what lies in the stages' outputs.

Holds no time, no host and no run's id, so that the same outputs give the same bytes. Where an output or a part of it is
missing, the page is made without it and says what is missing.
"""

import base64
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from PIL import Image

from dinov2.album import Album, data_uri
from dinov2.lookup import read_record
from dinov2.params import flatten
from dinov2.render import rendered
from dinov2.report.figures import Curve, draw_curves, read_curve
from dinov2.report.funnel import read_funnel
from dinov2.report.params import ReportParams
from dinov2.report.samples import choices, removed_groups
from dinov2.report.summary import headline, sentences
from dinov2.report.table import Judged, read_judged
from dinov2.store import Store

TRAINED = ("bootstrap", "pretrain", "highres")
ARCHITECTURE = ("dim", "depth", "heads", "patch_size", "ffn", "num_registers")


class Card(NamedTuple):
    """What a trained backbone is."""

    name: str
    architecture: dict[str, Any]
    image_size_px: int
    licence: str


class Strip(NamedTuple):
    """The PCA picture of one model: a row of components."""

    model: str
    image: str


class StageNote(NamedTuple):
    """What a stage ran with and measured, for the collapsible part."""

    name: str
    version: int
    params: dict[str, str]
    metrics: dict[str, float]
    mlflow_link: str | None


class Report(NamedTuple):
    """The page and the numbers that the stage hands on."""

    html: str
    judged: Judged | None
    missing: list[str]


def render(params: ReportParams, outputs: Mapping[str, Path], *, seeds: Path, store: Store) -> Report:
    """The page of `outputs` (folder by stage name; `evaluate` holds a folder a model).

    Raises InputError if a shard that it shows images of is not in the store.
    """
    missing: list[str] = []
    with Album(store, outputs, params.thumbnail_px, needs_blobs=True) as album:
        removed = removed_groups(outputs, album, params.num_removed_shown)
        chosen = choices(outputs, album, params.num_seeds_shown, params.num_retrieved_shown)
    made = {path.parent.name for path in outputs["distill"].glob("*/backbone.json")}
    students = [*(name for name in params.models if name in made), *sorted(made - set(params.models))]
    judged = read_judged(outputs["evaluate"], students, params)
    funnel = read_funnel(dict(outputs))
    curves, student_curves = _curves(outputs, students, missing)
    photos, strips = _pictures(outputs["evaluate"], params.models)
    missing += [f"evaluation of {name}" for name in (judged.absent if judged else params.models)]
    missing += [f"record of {stage}" for stage in outputs if stage != "evaluate" and not read_record(outputs[stage])]
    if not removed:
        missing.append("images of what the curation removed")
    if not strips:
        missing.append("PCA pictures")
    filters = {"percent": percent, "points": points, "grouped": grouped, "words": words, "compact": compact}
    html = rendered(
        "dinov2.report",
        "page.html.j2",
        filters=filters,
        params=params,
        about=_about(seeds),
        headline=headline(judged, funnel, params.teacher),
        sentences=sentences(judged, funnel, params.teacher),
        funnel=funnel,
        removed=removed,
        choices=chosen,
        curves=draw_curves(curves, params.curves),
        student_curves=draw_curves(student_curves, params.curves),
        judged=judged,
        photos=photos,
        strips=strips,
        cards=_cards(outputs, students),
        stages=_stage_notes(outputs, params),
        missing=missing,
    )
    return Report(html, judged, missing)


def _curves(
    outputs: Mapping[str, Path], students: list[str], missing: list[str]
) -> tuple[dict[str, Curve], dict[str, Curve]]:
    runs = {name: read_curve(outputs[name] / "curves.csv") for name in TRAINED}
    pupils = {name: read_curve(outputs["distill"] / name / "curves.csv") for name in students}
    missing += [f"curves of {name}" for name, curve in {**runs, **pupils}.items() if curve is None]
    return (
        {name: curve for name, curve in runs.items() if curve is not None},
        {name: curve for name, curve in pupils.items() if curve is not None},
    )


def _pictures(evaluate: Path, models: list[str]) -> tuple[str | None, list[Strip]]:
    """The row of photographs, which is the same for every model, and each model's row of components."""
    photos, strips = None, []
    for model in models:
        path = evaluate / model / "figures" / "pca.png"
        if path.exists():
            with Image.open(path) as picture:
                width, half = picture.width, picture.height // 2
                photos = photos or data_uri(picture.crop((0, 0, width, half)))
                strips.append(Strip(model, _png(picture.crop((0, half, width, 2 * half)))))
    return photos, strips


def _png(image: Image.Image) -> str:
    """As PNG of 256 colours: small, and the colours are a code, not a photograph."""
    buffer = io.BytesIO()
    image.convert("RGB").quantize(256).save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _about(seeds: Path) -> dict[str, str] | None:
    """What kind of recognition the labels ask for, where the images' maker wrote it beside the seeds."""
    path = seeds.parent / "about.json"
    return json.loads(path.read_text()) if path.exists() else None


def _cards(outputs: Mapping[str, Path], students: list[str]) -> list[Card]:
    folders = {**{name: outputs[name] for name in TRAINED}, **{name: outputs["distill"] / name for name in students}}
    cards = []
    for name, folder in folders.items():
        path = folder / "backbone.json"
        if path.exists():
            card = json.loads(path.read_text())
            architecture = {key: card["architecture"][key] for key in ARCHITECTURE}
            cards.append(Card(name, architecture, card["image_size_px"], card["licence"]))
    return cards


def _stage_notes(outputs: Mapping[str, Path], params: ReportParams) -> list[StageNote]:
    notes = []
    for stage, folder in outputs.items():
        folders = [folder] if stage != "evaluate" else [folder / name for name in ("baselines", *params.models)]
        for place in folders:
            record = read_record(place)
            if record is not None:
                name = stage if place == folder else f"{stage}@{place.name}"
                metrics = json.loads((place / "metrics.json").read_text()) if (place / "metrics.json").exists() else {}
                link = _mlflow_link(params.mlflow_url, name)
                notes.append(StageNote(name, record["version"], _texts(record["params"]), metrics, link))
    return notes


def _mlflow_link(address: str, run: str) -> str | None:
    """A search for the run's name, which does not change from run to run as ids do."""
    search = quote(f"attributes.run_name = '{run}'")
    return f"{address}?searchFilter={search}" if address else None


def _texts(params: object) -> dict[str, str]:
    """Params as {dotted.key: text}."""
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in flatten(params).items()}


def percent(share: float) -> str:
    """0.613 as 61.3."""
    return f"{100 * share:.1f}"


def points(difference: float) -> str:
    """A difference of shares in percentage points, with its sign and a true minus."""
    return f"{100 * difference:+.1f}".replace("-", "\N{MINUS SIGN}")


def grouped(number: int) -> str:
    """12,345."""
    return f"{number:,}"


def compact(number: int) -> str:
    """1,234,567 as 1.23 M."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number:.0f}"


def words(name: str) -> str:
    """`too_small` as `too small`."""
    return name.replace("_", " ")
