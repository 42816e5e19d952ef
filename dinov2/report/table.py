"""The evaluation table: every judged model on the same test images, and what their differences are worth.

All models predict the same images, so differences are paired: the interval of (hits of one) - (hits of the other) over
resampled images is narrower than two separate intervals would say.

The random network is compared by the better of its tokens: with LayerScale at its start its class token hardly depends
on the image, so that its class token alone would flatter every other model.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dinov2.metrics import bootstrap_interval
from dinov2.params import InputError
from dinov2.report.params import ReportParams

BASELINES = {"histogram_knn": "colour histogram", "pixels_knn": "raw pixels"}
RANDOM = "random"


class Interval(NamedTuple):
    """A share or a difference of shares with its 95 % interval."""

    value: float
    low: float
    high: float


class Row(NamedTuple):
    """A judged model; None stands for what was not measured."""

    model: str
    kind: str
    """network | student | baseline | random"""
    knn: Interval
    knn_top5: float
    patch_knn: Interval | None
    """k-NN on the mean patch token."""
    linear: Interval | None
    num_parameters: int | None
    image_size_px: int | None
    effective_rank: float | None
    over_random: Interval | None
    """k-NN top-1 less that of the random network, on whichever of its two tokens is better."""
    to_teacher: Interval | None
    by_neighbors: dict[int, float]
    """k-NN top-1 by number of neighbours."""


class Judged(NamedTuple):
    """All rows and what they have in common."""

    rows: list[Row]
    absent: list[str]
    """Models that were asked for and not evaluated."""
    num_train: int
    num_test: int
    num_classes: int

    def row(self, model: str) -> Row | None:
        """The row of a model, None if it was not evaluated."""
        return next((row for row in self.rows if row.model == model), None)


class _Model(NamedTuple):
    metrics: dict[str, float]
    predictions: dict[str, Any]

    def hits(self, method: str) -> np.ndarray:
        predicted = self.predictions["methods"][method]
        return np.array([a == b for a, b in zip(predicted, self.predictions["labels"], strict=True)], dtype=float)


def read_judged(evaluate: Path, students: Sequence[str], params: ReportParams) -> Judged | None:
    """Rows of the baselines and of `params.models`, in that order; None if nothing was evaluated.

    Raises InputError if two models were judged on different images.
    """
    models = {name: _read(evaluate / name) for name in ("baselines", *params.models)}
    present = {name: model for name, model in models.items() if model is not None}
    absent = [name for name, model in models.items() if model is None]
    if not present:
        return None
    first = next(iter(present))
    for name, model in present.items():
        if model.predictions["ids"] != present[first].predictions["ids"]:
            raise InputError(f"{evaluate / name} and {evaluate / first} judge different images; evaluate them again")
    rows = [_baseline(present, method, params) for method in BASELINES if "baselines" in present]
    rows += [_network(present, name, name in students, params) for name in params.models if name in present]
    metrics = present[first].metrics
    return Judged(rows, absent, *(int(metrics[key]) for key in ("num_train", "num_test", "num_classes")))


def _read(folder: Path) -> _Model | None:
    paths = [folder / "metrics.json", folder / "predictions.json"]
    if not all(path.exists() for path in paths):
        return None
    return _Model(*(json.loads(path.read_text()) for path in paths))


def _baseline(models: Mapping[str, _Model], method: str, params: ReportParams) -> Row:
    metrics = models["baselines"].metrics
    over_random = _over_random(models, ("baselines", method), params)
    return Row(
        model=BASELINES[method],
        kind="baseline",
        knn=_interval(metrics, method),
        knn_top5=metrics[f"{method}_top5"],
        patch_knn=None,
        linear=None,
        num_parameters=None,
        image_size_px=None,
        effective_rank=None,
        over_random=over_random,
        to_teacher=None,
        by_neighbors=_by_neighbors(metrics, method),
    )


def _network(models: Mapping[str, _Model], name: str, is_student: bool, params: ReportParams) -> Row:
    metrics = models[name].metrics
    kind = "random" if name == RANDOM else "student" if is_student else "network"
    over_random = None if name == RANDOM else _over_random(models, (name, "knn"), params)
    to_teacher = _difference(models, (name, "knn"), (params.teacher, "knn"), params) if is_student else None
    return Row(
        model=name,
        kind=kind,
        knn=_interval(metrics, "knn"),
        knn_top5=metrics["knn_top5"],
        patch_knn=_interval(metrics, "patch_knn"),
        linear=_interval(metrics, "linear"),
        num_parameters=int(metrics["num_parameters"]),
        image_size_px=int(metrics["image_size_px"]),
        effective_rank=metrics["effective_rank"],
        over_random=over_random,
        to_teacher=to_teacher,
        by_neighbors=_by_neighbors(metrics, "knn"),
    )


def _interval(metrics: Mapping[str, float], method: str) -> Interval:
    return Interval(*(metrics[f"{method}_top1{end}"] for end in ("", "_low", "_high")))


def _by_neighbors(metrics: Mapping[str, float], method: str) -> dict[int, float]:
    start = f"{method}_top1_k"
    return dict(
        sorted((int(key.removeprefix(start)), value) for key, value in metrics.items() if key.startswith(start))
    )


def _over_random(models: Mapping[str, _Model], first: tuple[str, str], params: ReportParams) -> Interval | None:
    if RANDOM not in models:
        return None
    best = max(("knn", "patch_knn"), key=lambda method: models[RANDOM].metrics[f"{method}_top1"])
    return _difference(models, first, (RANDOM, best), params)


def _difference(
    models: Mapping[str, _Model], first: tuple[str, str], second: tuple[str, str], params: ReportParams
) -> Interval | None:
    if first[0] not in models or second[0] not in models:
        return None
    values = models[first[0]].hits(first[1]) - models[second[0]].hits(second[1])
    low, high = bootstrap_interval(values, num_resamples=params.num_resamples, seed=params.seed)
    return Interval(float(values.mean()), low, high)


def plain_table(judged: Judged) -> str:
    """The table as text for a terminal."""
    header = (
        "model",
        "parameters",
        "image px",
        "k-NN top-1 (95 %)",
        "mean patch",
        "linear top-1 (95 %)",
        "over random",
    )
    lines: list[tuple[str, ...]] = [header]
    for row in judged.rows:
        over = row.over_random
        lines.append(
            (
                row.model,
                f"{row.num_parameters:,}" if row.num_parameters else "-",
                f"{row.image_size_px}" if row.image_size_px else "-",
                _plain(row.knn),
                f"{100 * row.patch_knn.value:.1f}" if row.patch_knn else "-",
                _plain(row.linear) if row.linear else "-",
                f"{100 * over.value:+.1f} [{100 * over.low:+.1f}, {100 * over.high:+.1f}]" if over else "-",
            )
        )
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    text = ["  ".join([name.ljust(widths[0]), *map(str.rjust, rest, widths[1:])]) for name, *rest in lines]
    text.insert(1, "-" * len(text[0]))
    about = f"{judged.num_test:,} held-out images of {judged.num_classes} labels; percent [95 % interval]"
    return "\n".join([about, "", *text]) + "\n"


def _plain(value: Interval) -> str:
    return f"{100 * value.value:.1f} [{100 * value.low:.1f}, {100 * value.high:.1f}]"
