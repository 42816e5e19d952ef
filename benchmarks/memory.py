"""Memory of a training step, ours against the reference implementation's, as a Markdown table.

Run:   python benchmarks/memory.py --reference DIR       (CPU: ViT-S/14; 10 minutes, 6 GiB)

Sizes and stand-ins are those of benchmarks/train_step.py. Each line is a fresh process that does three steps and tells
its peak resident set. What it held before anything was built is the interpreter and PyTorch; the state is the weights
of student and teacher and AdamW's two moments in fp32, which both sides need alike. What is left belongs to the step.
"""

import argparse
import sys
import tempfile
from pathlib import Path

from step_case import GIB, Case
from step_sides import Worker, add_arguments, check_arguments, make_case, prepare
from train_step import machine, title

from dinov2.params import InputError

NUM_STEPS = 3
BAR = 0.7

Memory = tuple[int, int, int]
"""Bytes: peak, before anything was built, state."""


def measure(side: str, precision: str, case: Case, args: argparse.Namespace) -> Memory:
    """Memory of one side's process."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(case, folder)
        with Worker(side, case, folder, args) as worker:
            peak = max(worker.step(precision).peak_bytes for _ in range(NUM_STEPS))
            return peak, worker.before_bytes, worker.state_bytes


def rows(case: Case, args: argparse.Namespace) -> list[str]:
    """A table of both sides at both precisions."""
    lines = [
        "| side | precision | peak GiB | before GiB | state GiB | the step's own GiB |",
        "|---|---|---|---|---|---|",
    ]
    peaks, own = {}, {}
    for precision in ("fp32", "bf16"):
        for side in ("reference", "ours"):
            peak, before, state = measure(side, precision, case, args)
            peaks[side, precision], own[side, precision] = peak, peak - before - state
            cells = " | ".join(f"{each / GIB:.2f}" for each in (peak, before, state, peak - before - state))
            lines.append(f"| {side} | {precision} | {cells} |")
            print(lines[-1], file=sys.stderr)
    lines += ["", f"| ratio | peak (bar {BAR}) | the step's own |", "|---|---|---|"]
    for ours, reference in (("fp32", "fp32"), ("bf16", "bf16"), ("bf16", "fp32")):
        ratios = [values["ours", ours] / values["reference", reference] for values in (peaks, own)]
        lines.append(f"| ours {ours} over reference {reference} | {ratios[0]:.2f} | {ratios[1]:.2f} |")
    return lines


def main() -> int:
    """Measure, print, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.add_argument("--out", type=Path, help="write the table there too")
    args = parser.parse_args()
    lines = [machine("cpu")]
    try:
        check_arguments(args)
        for drop_path in args.drop_path or (0.0, 0.3):
            case = make_case(
                args.arch or "vit_small", batch_size=args.batch or 4, num_prototypes=args.prototypes or 65536,
                drop_path=drop_path, device="cpu", global_px=224, local_px=98,
            )  # fmt: skip
            lines += ["", f"## {title(case)}", "", *rows(case, args)]
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    text = "\n".join(lines) + "\n"
    print(text)
    if args.out:
        args.out.write_text(f"Printed by `python benchmarks/memory.py`.\n\n{text}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
