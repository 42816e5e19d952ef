"""The curves of a run: `metrics.jsonl` while it runs, `curves.csv` and a figure when it is done.

A run that was killed and resumed has some steps twice in the first; of each step the last line counts. What a clock
decides (images per second, waiting) stays out of the second, which is the same for every run of the same params.
"""

import csv
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path

Row = dict[str, int | float]
"""Values of one step by name; `step` is how many steps were done."""

CURVES = "metrics.jsonl"
BY_CLOCK = ("time", "images_per_s", "data_wait_share", "memory_gb", "rss_gb", "model_tflops_per_s", "mfu")


def append_row(path: Path, step: int, values: Mapping[str, float]) -> None:
    """Add one line for `step` (steps done) with the time of now; after one that a full disk cut short, a new one."""
    row = {"step": step, "time": time.time(), **values}
    with path.open("ab+") as stream:
        if stream.tell() > 0:
            stream.seek(-1, os.SEEK_END)
        start = b"" if stream.read(1) in (b"", b"\n") else b"\n"
        stream.write(start + json.dumps(row).encode() + b"\n")


def flush_rows(path: Path) -> None:
    """Make the lines so far, if any, survive a power cut."""
    if path.exists():
        with path.open("rb") as stream:
            os.fsync(stream.fileno())


def read_rows(path: Path) -> list[Row]:
    """One row a step, by step; the last line of each counts and a line cut short does not."""
    if not path.exists():
        return []
    rows: dict[int, Row] = {}
    for line in path.read_text().splitlines(keepends=True):
        if line.endswith("}\n"):
            row = json.loads(line)
            rows[row["step"]] = row
    return [rows[step] for step in sorted(rows)]


def write_csv(path: Path, rows: list[Row]) -> None:
    """The rows without what a clock decides; a value that a step does not have is empty."""
    names = dict.fromkeys(name for row in rows for name in row if name not in BY_CLOCK)
    with path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(names), extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows({name: _shortest(value) for name, value in row.items()} for row in rows)


def _shortest(value: int | float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.8g}"


def plot_losses(path: Path, rows: list[Row], names: list[str]) -> None:
    """One small panel a curve, over the steps."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    present = [name for name in names if any(name in row for row in rows)]
    if not present:
        return
    columns = min(3, len(present))
    height = -(-len(present) // columns)
    size = (3.6 * columns, 2.5 * height)
    figure, axes = plt.subplots(height, columns, figsize=size, squeeze=False, layout="constrained")
    for axis, name in zip(axes.flat, present, strict=False):
        points = [(row["step"], row[name]) for row in rows if name in row]
        axis.plot([step for step, _ in points], [value for _, value in points], linewidth=1.2)
        axis.set_title(name, fontsize=9)
        axis.tick_params(labelsize=7)
        axis.grid(visible=True, alpha=0.3)
    for axis in axes.flat[len(present) :]:
        axis.remove()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, metadata={"Software": None})
    plt.close(figure)
