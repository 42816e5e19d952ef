"""Charts as SVG that is drawn the same, byte for byte, for the same numbers."""

import base64
import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

PALETTE = ("#0f9d8a", "#4f46e5", "#c026d3", "#f59e0b", "#ea580c", "#dc2626", "#0284c7")
STYLE: dict[Any, Any] = {
    "svg.hashsalt": "dinov2",  # element names that do not change from run to run
    "svg.fonttype": "none",  # text stays text, in the reader's own font
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],  # measures the text; which the reader's machine has is in the SVG's style
    "font.size": 9,
    "axes.edgecolor": "#cbd5e1",
    "axes.labelcolor": "#475569",
    "axes.titlecolor": "#0f172a",
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "xtick.color": "#64748b",
    "ytick.color": "#64748b",
    "xtick.labelcolor": "#64748b",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#eef2f7",
    "lines.linewidth": 1.7,
    "lines.solid_capstyle": "round",
    "legend.frameon": False,
}
FONTS = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', sans-serif"
SMOOTHED = 0.04  # share of a curve that is averaged for its bold line
PANEL_IN = (2.2, 2.1)  # inches

Curve = dict[str, npt.NDArray[np.float64]]


def read_curve(path: Path) -> Curve | None:
    """Columns of a curves.csv; None where there is none or it has no row."""
    if not path.exists():
        return None
    with path.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    if not rows:
        return None
    return {name: np.array([float(row[name]) if row[name] else np.nan for row in rows]) for name in rows[0]}


def draw_curves(curves: Mapping[str, Curve], columns: list[str]) -> str | None:
    """A panel for every column that some run has, a line a run over its steps; an SVG data URI, None if empty."""
    drawn = [column for column in columns if any(column in curve for curve in curves.values())]
    if not drawn:
        return None
    with mpl.rc_context({**mpl.rcParamsDefault, **STYLE}):
        figure = Figure(figsize=(PANEL_IN[0] * max(len(drawn), 3), PANEL_IN[1] + 0.35), layout="constrained")
        panels = figure.subplots(1, len(drawn), squeeze=False)[0]
        for axes, column in zip(panels, drawn, strict=True):
            for number, (name, curve) in enumerate(curves.items()):
                if column in curve:
                    _line(axes, curve["step"], curve[column], PALETTE[number % len(PALETTE)], name)
            axes.set_title(column.replace("_", " "), loc="left")
            axes.set_xlabel("step")
            axes.margins(x=0.02)
            axes.locator_params(nbins=5)
        handles = {
            label: handle for axes in panels for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
        }
        figure.legend(
            handles.values(), handles.keys(), loc="outside upper left", ncols=len(handles), labelcolor="#334155"
        )
        return _svg(figure)


def _line(axes: Axes, steps: npt.NDArray[np.float64], values: npt.NDArray[np.float64], colour: str, name: str) -> None:
    known = ~np.isnan(values)  # what is measured less often has empty places
    steps, values = steps[known], values[known]
    width = int(len(values) * SMOOTHED) // 2 * 2 + 1
    if width == 1:
        axes.plot(steps, values, color=colour, label=name)
        return
    axes.plot(steps, values, color=colour, alpha=0.22, linewidth=1.0)
    padded = np.pad(values, width // 2, mode="edge")
    axes.plot(steps, np.convolve(padded, np.ones(width) / width, mode="valid"), color=colour, label=name)


def _svg(figure: Figure) -> str:
    buffer = io.StringIO()
    FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue().replace("'DejaVu Sans'", FONTS)
    return "data:image/svg+xml;base64," + base64.b64encode(text.encode()).decode()
