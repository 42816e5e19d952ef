"""Histograms as plain numbers for an SVG that a template draws."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

WIDTH, HEIGHT = 640, 150
NUM_BINS = 60


class Chart(NamedTuple):
    """A histogram of cosines, in pixels of a picture of WIDTH x HEIGHT."""

    bars: list[tuple[float, float, float, float, str]]
    """Left, top, width, height, and what stands in it."""
    lines: list[tuple[float, str]]
    """Where thresholds are, with their names."""
    ticks: list[tuple[float, str]]
    num: int


def histogram(values: Float[np.ndarray, " n"], thresholds: dict[str, float]) -> Chart | None:
    """Counts in NUM_BINS bins from the least value or threshold to 1; None if there is nothing to count."""
    values = values[np.isfinite(values)]
    if len(values) == 0:
        return None
    low = np.floor(20 * (min([float(values.min()), *thresholds.values()]) - 0.02)) / 20
    edges = np.linspace(low, 1, NUM_BINS + 1)
    counts, _ = np.histogram(np.clip(values, low, 1), edges)
    tallest = counts.max()

    def across(value: float) -> float:
        return round(float(WIDTH * (value - low) / (1 - low)), 2)

    bars = []
    for left, right, count in zip(edges[:-1].tolist(), edges[1:].tolist(), counts.tolist(), strict=True):
        if count:
            height = round(max(1.0, HEIGHT * count / tallest), 2)
            about = f"{left:.3f} to {right:.3f}: {count:,}"
            bars.append((across(left), HEIGHT - height, across(right) - across(left) - 1, height, about))
    step = 0.05 if 1 - low <= 0.5 else 0.1 if 1 - low <= 1.1 else 0.25
    ticks = [(across(tick), f"{tick:.2f}") for tick in np.arange(np.ceil(low / step), round(1 / step) + 1) * step]
    return Chart(bars, [(across(value), name) for name, value in thresholds.items()], ticks, len(values))
