"""What looking after a run costs its steps, as a Markdown table.

Run:   python benchmarks/health.py [--dim 192 --depth 6 --heads 3 --images 256]      (two minutes on one core)

What runs at every step (a beat of the watchdog, the meter, what the losses say, the processes' agreement) is timed by
itself, `--calls` times. A look at the features of `--images` images is timed beside forward passes of the same network:
a training step of one image is worth about `STEP_PASSES` of them, which tells after how many images a look pays.
"""

import argparse
import time
from collections.abc import Callable
from math import ceil, log
from pathlib import Path
from statistics import median

import numpy as np
import simplejpeg
import torch

from dinov2.models.params import HeadParams, ViTParams
from dinov2.train.health import Alarms, Meter
from dinov2.train.interrupt import Interruption
from dinov2.train.monitor import Monitor
from dinov2.train.objective import backbone_of, build_network
from dinov2.train.watchdog import Watchdog

RESULT = Path("benchmarks/results/health.md")
BAR = 0.02
STEP_PASSES = 12.0  # in passes of a 224-px image: teacher 2; student 2 + 8 x 0.19 for local crops; backward twice that


class Noise:
    """Images of noise, of two labels."""

    def __init__(self, num_images: int) -> None:
        self.num_images = num_images

    def __len__(self) -> int:
        return self.num_images

    def fingerprint(self) -> str:
        """Of how many."""
        return f"noise-{self.num_images}"

    def read(self, i: int) -> bytes:
        """A JPEG."""
        return simplejpeg.encode_jpeg(np.random.default_rng(i).integers(0, 256, (256, 256, 3), dtype=np.uint8))

    def id(self, i: int) -> str:
        """Its number."""
        return str(i)

    def label(self, i: int) -> str | None:
        """One of two."""
        return "ab"[i % 2]


def seconds_a_call(act: Callable[[], object], num_calls: int) -> float:
    """Median of ten means."""
    means = []
    for _ in range(10):
        started = time.perf_counter()
        for _ in range(num_calls // 10):
            act()
        means.append((time.perf_counter() - started) / (num_calls // 10))
    return median(means)


def at_every_step(num_calls: int) -> dict[str, float]:
    """Seconds of each part, by name."""
    meter = Meter(batch_size=64, flops_per_step=1e12, peak_tflops=None)
    alarms = Alarms(num_prototypes=65536, min_effective_rank=8.0, max_chance_steps=2000)
    losses = {"dino_local": log(65536) * 16 / 18, "dino_global": log(65536) * 2 / 18, "total": 12.0}

    def measure() -> None:
        with meter.waiting():
            pass
        meter.step_done()

    with Watchdog(1800.0) as watchdog, Interruption() as interruption:
        parts: dict[str, Callable[[], object]] = {
            "watchdog: two beats, one pause": lambda: _beats(watchdog),
            "meter": measure,
            "alarms of losses": lambda: alarms.of_losses(1, losses),
            "agreement about signals, one process": lambda: interruption.agreed(has_failed=False, is_last=False),
            "meter's reading, where a step is logged": meter.rates,
        }
        return {name: seconds_a_call(act, num_calls) for name, act in parts.items()}


def _beats(watchdog: Watchdog) -> None:
    watchdog.beat(1, "data")
    watchdog.beat(1, "the step")
    with watchdog.paused():
        pass


def of_a_look(options: argparse.Namespace) -> tuple[float, float]:
    """Seconds of a look at the features, and of one image's forward pass."""
    model = ViTParams(
        patch_size=14, dim=options.dim, depth=options.depth, heads=options.heads, ffn="mlp", num_registers=0,
        layerscale=1.0, drop_path=0.0, image_size_px=224, interpolate_offset=0.1, interpolate_antialias=False,
    )  # fmt: skip
    head = HeadParams(num_prototypes=options.prototypes, hidden_dim=2048, bottleneck_dim=256, num_layers=3)
    network = build_network(model, head, None)
    monitor = Monitor(Noise(options.images), num_images=options.images, size_px=224, seed=0, device=torch.device("cpu"))
    images = monitor.images[:16]
    with torch.no_grad():
        backbone_of(network).features(images)
        pass_s = seconds_a_call(lambda: backbone_of(network).features(images), 10) / len(images)
    started = time.perf_counter()
    monitor.values(network, 0.07)
    return time.perf_counter() - started, pass_s


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sizes = {"dim": 192, "depth": 6, "heads": 3, "prototypes": 4096, "images": 256, "calls": 10000}
    for name, value in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    options = parser.parse_args()
    torch.set_num_threads(1)
    lines = ["| at every step | microseconds |", "|---|---|"]
    parts = at_every_step(options.calls)
    lines += [f"| {name} | {1e6 * seconds:.1f} |" for name, seconds in parts.items()]
    lines += [f"| together | {1e6 * sum(parts.values()):.1f} |", ""]
    least_ms = 1e3 * sum(parts.values()) / BAR
    lines += [f"Below {100 * BAR:.0f} % of every step that takes more than {least_ms:.2f} ms.", ""]
    look_s, pass_s = of_a_look(options)
    num_images = look_s / (BAR * STEP_PASSES * pass_s)
    lines += [
        f"A look at {options.images} images (ViT of dim {options.dim}, depth {options.depth}, {options.prototypes:,} "
        f"prototypes, one thread): {look_s:.2f} s, {look_s / pass_s:.0f} forward passes of an image. With "
        f"{STEP_PASSES:g} passes an image and step it costs less than {100 * BAR:.0f} % where it comes after at least "
        f"{ceil(num_images):,} images, e.g. every {ceil(num_images / 64):,} steps of 64.",
    ]
    text = "\n".join(lines)
    print(text)
    RESULT.write_text(f"Printed by `python benchmarks/health.py`.\n\n{text}\n")


if __name__ == "__main__":
    main()
