"""A training step, ours against the reference implementation's, as Markdown tables.

Run:   python benchmarks/train_step.py --reference DIR                  (CPU: ViT-S/14; 10 minutes, 10 GiB)
       python benchmarks/train_step.py --reference DIR --device cuda    (ViT-L/14; predictions beside)

DIR is a checkout of facebookresearch/dinov2 at b8931f7; reference_step.py says what stands in for what a CPU has not.
Both sides start from the same weights and take the same crops, masks and number of prototypes through forward,
backward, clipping, AdamW and the teacher's average, by turns: reference fp32, ours fp32, reference bf16, ours bf16.
A shared machine's wall clock varies; hence the minimum beside the median, and CPU seconds.
"""

import argparse
import platform
import statistics
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

import torch
from step_case import GIB, Case
from step_sides import Step, Worker, add_arguments, check_arguments, make_case, prepare

from dinov2.params import InputError

SIDES = ("reference", "ours")
PREDICTED = {(224, 32): 340, (224, 64): 355, (518, 16): 51}  # (global px, batch): our images/s on an H200; unmeasured
"""benchmarks/results/train_step.md says from what."""

Measured = dict[tuple[str, str], list[Step]]
"""Steps by side and precision."""


def measure(case: Case, args: argparse.Namespace, turns: list[tuple[str, str]]) -> Measured:
    """Steps in turn, after `args.warmup` rounds that only the first losses are taken from."""
    steps: Measured = defaultdict(list)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(case, folder)
        with Worker("reference", case, folder, args) as reference, Worker("ours", case, folder, args) as ours:
            workers = {"reference": reference, "ours": ours}
            for number in range(args.warmup + args.rounds):
                for side, precision in turns:
                    steps[side, precision].append(workers[side].step(precision))
                    print(f"round {number}: {side} {precision} {steps[side, precision][-1]}", file=sys.stderr)
            for side, precision in turns if args.profile else []:
                print(f"\n{side} {precision}", file=sys.stderr)
                workers[side].step(precision, profile=True)
    return steps


def table(case: Case, steps: Measured, warmup: int) -> list[str]:
    """Rows by side and precision, then the ratios that the bars are about."""
    lines = [
        "| side | precision | images/s, best | images/s, median | CPU s a step, best | first total loss |",
        "|---|---|---|---|---|---|",
    ]
    best, cpu = {}, {}
    for (side, precision), all_steps in steps.items():
        timed = all_steps[warmup:]
        walls = [step.wall_s for step in timed]
        best[side, precision] = case.batch_size / min(walls)
        cpu[side, precision] = min(step.cpu_s for step in timed)
        middle = case.batch_size / statistics.median(walls)
        lines.append(
            f"| {side} | {precision} | {best[side, precision]:.3g} | {middle:.3g} | {cpu[side, precision]:.2f} "
            f"| {all_steps[0].losses['total']:.5f} |"
        )
    lines += ["", "| ratio | images/s | CPU s | bar |", "|---|---|---|---|"]
    for ours, reference, bar in RATIOS:
        if ("ours", ours) in best and ("reference", reference) in best:
            speed = best["ours", ours] / best["reference", reference]
            less = cpu["reference", reference] / cpu["ours", ours]
            lines.append(f"| ours {ours} over reference {reference} | {speed:.2f} | {less:.2f} | {bar} |")
    return lines


RATIOS = (("fp32", "fp32", "1.3"), ("bf16", "bf16", "1.3"), ("bf16", "fp32", "2"), ("bf16", "fp16", "1.5"))
"""(our precision, the reference's, least ratio of images/s)"""


def loss_lines(steps: Measured) -> list[str]:
    """Each loss of the first step on both sides, where both ran at one precision."""
    lines = ["| first losses | reference | ours | difference |", "|---|---|---|---|"]
    for (side, precision), ours in steps.items():
        theirs = steps.get(("reference", precision))
        if side != "ours" or theirs is None:
            continue
        for name, value in ours[0].losses.items():
            other = theirs[0].losses[name]
            lines.append(f"| {name}, {precision} | {other:.6f} | {value:.6f} | {abs(other - value):.1e} |")
    return lines


def on_cpu(args: argparse.Namespace) -> list[str]:
    """Without and with stochastic depth, at both precisions."""
    lines = []
    for drop_path in args.drop_path or (0.0, 0.3):
        case = make_case(
            args.arch or "vit_small", batch_size=args.batch or 4, num_prototypes=args.prototypes or 65536,
            drop_path=drop_path, device="cpu", global_px=224, local_px=98,
        )  # fmt: skip
        steps = measure(case, args, [(side, precision) for precision in ("fp32", "bf16") for side in SIDES])
        lines += ["", f"## {title(case)}", "", *table(case, steps, args.warmup), "", *loss_lines(steps)]
        if drop_path > 0:
            lines += ["", "The sides draw different samples to skip, so these losses need not agree."]
    return lines


def on_gpu(args: argparse.Namespace) -> list[str]:
    """ViT-L/14 at 224 and 518 px, the reference as it is configured (fp16) against our default (bf16)."""
    lines = []
    for (size_px, batch_size), images_per_s in PREDICTED.items():
        case = make_case(
            args.arch or "vit_large", batch_size=args.batch or batch_size, num_prototypes=args.prototypes or 131072,
            drop_path=(args.drop_path or [0.4])[0], device="cuda", global_px=size_px,
            local_px=98 if size_px == 224 else 224,
        )  # fmt: skip
        steps = measure(case, args, [("reference", "fp16"), ("ours", "bf16")])
        peaks = ", ".join(f"{side} {each[-1].peak_bytes / GIB:.1f} GiB" for (side, _), each in steps.items())
        lines += [
            "", f"## {title(case)}", "", *table(case, steps, args.warmup), "",
            f"Predicted of ours, on an H200: {images_per_s} images/s. Peak memory: {peaks}.",
        ]  # fmt: skip
    return lines


def title(case: Case) -> str:
    """The case in words."""
    return (
        f"{case.arch}/{case.patch_size} on {case.device}: batch {case.batch_size}, 2 x {case.global_px} + "
        f"{case.num_local} x {case.local_px} px, K = {case.num_prototypes}, drop path {case.drop_path:g}"
    )


def main() -> int:
    """Measure, print, and write the table of this device."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--warmup", type=int, default=1)
    parser.add_argument("--profile", action="store_true", help="then profile a step of each side, to standard error")
    parser.add_argument("--out", type=Path, help="write the tables there too")
    args = parser.parse_args()
    try:
        check_arguments(args)
        check_device(args.device)
        lines = on_gpu(args) if args.device == "cuda" else on_cpu(args)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    text = "\n".join([machine(args.device), *lines]) + "\n"
    print(text)
    if args.out:
        heap = " --keep-heap" if args.keep_heap else ""
        args.out.write_text(f"Printed by `python benchmarks/train_step.py --reference DIR{heap}`.\n\n{text}")
    return 0


def check_device(device: str) -> None:
    """Raises InputError if there is no such device."""
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("--device is cuda, but this machine has no GPU that PyTorch can use; leave it out")


def machine(device: str) -> str:
    """What it ran on."""
    if device == "cuda":
        return f"{torch.cuda.get_device_name()}, PyTorch {torch.__version__}."
    return (
        f"{torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}, {platform.machine()}, "
        f"PyTorch {torch.__version__}."
    )


if __name__ == "__main__":
    sys.exit(main())
