"""What logging costs a training's steps, as a Markdown table.

Run:   python benchmarks/logging_cost.py [--metrics 50 --calls 2000]      (a minute on one core)

Timed: the line of `--metrics` metrics that a step adds to metrics.jsonl (dinov2/train/curves.py), which is all of
logging that a step waits for; and a sample of the machine (tasks/system.py), which a thread of the job takes every
SAMPLE_EVERY_S seconds, also with as many GPUs as there are. Processor time counts, since on a CPU the thread takes it
from the step; where the machine is busy, wall time says more about others. Nothing here asks a tracking server: jobs
don't.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

from dinov2.train.curves import append_row
from tasks.system import SAMPLE_EVERY_S, append_line, sampler, visible_gpus

RESULT = Path("benchmarks/results/logging_cost.md")
STEP_S = 0.2
LOGGING_BAR, SYSTEM_BAR = 0.01, 0.001
NUM_PARTS = 20


def costs(act: Callable[[], object], num_calls: int) -> tuple[float, float, float]:
    """Seconds a call: median and worst of NUM_PARTS means by the wall clock, and the mean of processor time."""
    means = []
    processor = time.process_time()
    for _ in range(NUM_PARTS):
        started = time.perf_counter()
        for _ in range(num_calls // NUM_PARTS):
            act()
        means.append((time.perf_counter() - started) / (num_calls // NUM_PARTS))
    return median(means), max(means), (time.process_time() - processor) / (num_calls // NUM_PARTS * NUM_PARTS)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--metrics", type=int, default=50)
    parser.add_argument("--calls", type=int, default=2000)
    options = parser.parse_args()
    values = {f"learner/metric_{number:02d}": 1.0 / (number + 3) for number in range(options.metrics)}
    with tempfile.TemporaryDirectory() as folder:
        curves, system = Path(folder) / "metrics.jsonl", Path(folder) / "system.jsonl"
        sample = sampler()
        log = costs(lambda: append_row(curves, 1, values), options.calls)
        look = costs(lambda: append_line(system, {"step": 1, "time": time.time(), **sample()}), options.calls)
    every_step = max(log[0], log[2]) / STEP_S
    every_look = max(look[0], look[2]) / SAMPLE_EVERY_S
    step = f"{1e3 * STEP_S:.0f} ms"
    lines = [
        "| | median us | worst of 20 us | processor us | how often | share of a step's time | bar |",
        "|---|---|---|---|---|---|---|",
        _row(f"{options.metrics} metrics to metrics.jsonl", log, f"a step of {step}", every_step, LOGGING_BAR),
        _row(f"a sample, {len(visible_gpus())} GPUs", look, f"{SAMPLE_EVERY_S:.0f} s", every_look, SYSTEM_BAR),
        "",
        f"Together {100 * (every_step + every_look):.3f} % of a step of {step} that logs every time; the larger of "
        "median and processor time counts.",
    ]  # fmt: skip
    text = "\n".join(lines)
    print(text)
    RESULT.write_text(f"Printed by `python benchmarks/logging_cost.py`.\n\n{text}\n")


def _row(what: str, cost: tuple[float, float, float], often: str, share: float, bar: float) -> str:
    numbers = " | ".join(f"{1e6 * seconds:.0f}" for seconds in cost)
    return f"| {what} | {numbers} | every {often} | {100 * share:.4f} % | {100 * bar:g} % |"


if __name__ == "__main__":
    main()
