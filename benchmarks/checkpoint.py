"""What a checkpoint costs the training it interrupts, as a Markdown table.

Run:   python benchmarks/checkpoint.py [--dim 384 --depth 12 --heads 6 --prototypes 65536] [--folder DISK]

Saves student, teacher, both heads each and AdamW's state of a ViT, `--saves` times each way: waiting for the disk, and
beside the work of the main thread, products of matrices, which stands for training. "Held" is how long `save` keeps its
caller; the writer's seconds are the processor time of its thread, which only matters where no core is spare.
"""

import argparse
import tempfile
import time
from pathlib import Path
from statistics import median

import torch

from dinov2.models.params import HeadParams, ViTParams
from dinov2.train.checkpoint import Checkpoints
from dinov2.train.optim import build_optimizer
from dinov2.train.params import LossParams, OptimParams
from dinov2.train.student_teacher import StudentTeacher

RESULT = Path("benchmarks/results/checkpoint.md")
MINUTE_S = 60.0
BAR = 0.02


def build(options: argparse.Namespace) -> tuple[StudentTeacher, dict[str, torch.optim.Optimizer]]:
    """Pretraining's networks and optimiser at the sizes asked for."""
    model = ViTParams(
        patch_size=14, dim=options.dim, depth=options.depth, heads=options.heads, ffn="mlp", num_registers=0,
        layerscale=1e-5, drop_path=0.0, image_size_px=224, interpolate_offset=0.1, interpolate_antialias=False,
    )  # fmt: skip
    head = HeadParams(num_prototypes=options.prototypes, hidden_dim=2048, bottleneck_dim=256, num_layers=3)
    loss = LossParams(
        dino_weight=1.0, ibot_weight=1.0, koleo_weight=0.1, centering="sinkhorn", sinkhorn_iterations=3,
        center_momentum=0.9, student_temperature=0.1,
    )  # fmt: skip
    optim = OptimParams(
        base_lr=1e-3, beta1=0.9, beta2=0.999, layerwise_decay=0.9, patch_embed_lr_multiplier=0.2, clip_norm=3.0
    )
    pair = StudentTeacher(model, head, head, loss, group_size=4, attention="sdpa")
    return pair, {"": build_optimizer(pair.student, optim)}


def measure(options: argparse.Namespace, folder: Path) -> list[dict[str, float]]:
    """Seconds of each save: of the first, which makes the buffers, then of `--saves` waiting and as many not."""
    pair, optimizers = build(options)
    left, right = torch.randn(512, 512), torch.randn(512, 512)
    rows = []
    with Checkpoints(folder, fingerprint="benchmark", num_kept=1) as checkpoints:
        for step, kind in enumerate(["first", *["waiting", "beside"] * options.saves], start=1):
            held_before, started = checkpoints.held_s, time.perf_counter()
            cpu_before = time.process_time() - time.thread_time()
            checkpoints.save(step, pair, optimizers, {})
            if kind == "waiting":
                checkpoints.wait()
            held_s = checkpoints.held_s - held_before
            while not (folder / f"step-{step:09d}").exists():
                torch.mm(left, right)
            total_s = time.perf_counter() - started
            checkpoints.wait()
            writer_s = time.process_time() - time.thread_time() - cpu_before
            rows.append({"kind": kind, "held_s": held_s, "total_s": total_s, "writer_s": writer_s})
            print(rows[-1], flush=True)
    return rows


def table(rows: list[dict[str, float]], num_bytes: int, options: argparse.Namespace) -> str:
    """Medians of each kind, and their share of a minute."""
    lines = [
        f"ViT of dim {options.dim}, depth {options.depth}, two heads of {options.prototypes:,} prototypes; student, "
        f"teacher and AdamW: {num_bytes / 1e9:.2f} GB on the disk. {torch.get_num_threads()} thread, "
        f"torch {torch.__version__}; medians of {options.saves} saves.",
        "",
        "| save | training held s | held, of a minute % | on the disk after s | writer's processor s |",
        "|---|---|---|---|---|",
    ]
    names = {"first": "first (makes the buffers)", "waiting": "waiting for the disk", "beside": "beside training"}
    shares = {}
    for kind, name in names.items():
        own = [row for row in rows if row["kind"] == kind]
        held, total, writer = (median(row[key] for row in own) for key in ("held_s", "total_s", "writer_s"))
        shares[kind] = held / MINUTE_S
        lines.append(f"| {name} | {held:.2f} | {100 * held / MINUTE_S:.2f} | {total:.2f} | {writer:.2f} |")
    met = "met" if shares["beside"] < BAR else "missed"
    bar = f"Bar: a save a minute holds training less than {100 * BAR:.0f} % of the time: {met}."
    return "\n".join([*lines, "", bar])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in {"dim": 384, "depth": 12, "heads": 6, "prototypes": 65536, "saves": 5}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--folder", type=Path, default=None, help="where to save; a temporary folder")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        rows = measure(options, Path(folder))
        num_bytes = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
    text = table(rows, num_bytes, options)
    print(text)
    RESULT.write_text(f"Printed by `python benchmarks/checkpoint.py`.\n\n{text}\n")


if __name__ == "__main__":
    main()
