"""What the parts that need a GPU do on one: predicted by arithmetic, then measured, as a Markdown table.

Run:   python benchmarks/gpu.py [--out FILE] [--parts tests join large_join step embed kmeans] [--tiny]
       (one GPU of 80 GB, 64 GB of memory, ten minutes; --tiny: small sizes, on a CPU where there is no GPU)

Predictions are FLOPs and bytes over what the card was seen to do (PEAKS), with nothing for launches and waits. Rows are
written as they come; a part that fails leaves its error in its row. Joins are checked against the pairs of sampled rows
that a plain float32 product finds; upload and the exact cosines of what was found are part of their time.
"""

import argparse
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dinov2.curation.dedup.join import EXACT, Pairs, Screen, pairs_above
from dinov2.curation.dedup.products import STRIP, engine
from dinov2.curation.dedup.recall import sampled_rows
from dinov2.curation.dedup.rotation import random_frame, score_for
from dinov2.curation.retrieve.blocks import InMemory
from dinov2.curation.retrieve.cluster import spherical_kmeans
from dinov2.models.params import ARCHITECTURES, ViTParams
from dinov2.models.vit import VisionTransformer

ROOT = Path(__file__).parents[1]
PEAKS = {"H100": (790e12, 3.0e12), "H200": (790e12, 4.3e12), "": (1e11, 2e10)}
"""By name: FLOP/s of bf16 products, bytes/s of the card's memory; the last for any other."""
UPLOAD_BYTES_S = 10e9  # of pageable memory, with its rounding to bf16
DIMS, COSINE, COPY_SHARE, NUM_SAMPLED = 512, 0.6, 0.15, 2048
DIRECTIONS = 80  # what the plan chose for such rows: results/dedup.md

Row = tuple[str, str, str, str]
"""What, predicted, measured, remark."""


def peaks() -> tuple[float, float]:
    """FLOP/s and bytes/s of this device."""
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    return next(values for known, values in PEAKS.items() if known in name)


def device() -> torch.device:
    """The GPU; a CPU where there is none."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def timed(call: Callable[[], object]) -> float:
    """Seconds until the device is done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    started = time.perf_counter()
    call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started


def gpu_tests(*, tiny: bool) -> Iterator[Row]:
    """The tests that need a GPU."""
    del tiny
    files = [str(path) for path in (ROOT / "tests").rglob("test_*.py") if "@pytest.mark.gpu" in path.read_text()]
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", *files]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    print(done.stdout[-6000:], done.stderr[-2000:], sep="\n", file=sys.stderr)
    yield "`pytest -m gpu`", "all pass", (done.stdout.strip().splitlines() or ["no output"])[-1], ""


def drawn(kind: str, num: int) -> NDArray[np.float32]:
    """Unit rows like those of benchmarks/dedup_vectors.py, drawn on the device; seed 0."""
    where = device()
    random = torch.Generator(where).manual_seed(0)
    deviation = torch.linspace(1, 0.25, DIMS, device=where)

    def directions(count: int) -> Tensor:
        return unit(torch.randn(count, DIMS, generator=random, device=where) * deviation)

    rows = torch.empty(num, DIMS, device=where)
    num_centres = num // 50
    centres = directions(num_centres)
    for some in torch.arange(num, device=where).split(2**18):
        rows[some] = directions(len(some))
        if kind == "clustered":
            home = torch.randint(num_centres, (len(some),), generator=random, device=where)
            share = torch.empty(len(some), 1, device=where).uniform_(0.6, 0.75, generator=random)
            rows[some] = unit(share * centres[home] + (1 - share**2).sqrt() * rows[some])
    copies = torch.randperm(num, generator=random, device=where)[: int(COPY_SHARE * num)]
    for some in copies.split(2**18):
        original = torch.randint(num, (len(some),), generator=random, device=where)
        cosine = torch.empty(len(some), 1, device=where).uniform_(0.5, 0.98, generator=random)
        rows[some] = unit(cosine * rows[original] + (1 - cosine**2).sqrt() * directions(len(some)))
    return rows.half().float().cpu().numpy()


def unit(rows: Tensor) -> Tensor:
    """Of length 1."""
    return rows / rows.norm(dim=1, keepdim=True)


def joins(*, tiny: bool) -> Iterator[Row]:
    """The join of dedup, exact and by a rotation."""
    code = Screen(random_frame(DIMS, DIRECTIONS, 0), score_for(COSINE, DIMS, DIRECTIONS, 0.005))
    for kind in ("unclustered", "clustered"):
        rows = drawn(kind, 20_000 if tiny else 1_000_000)
        yield one_join(rows, f"{kind}, exact", EXACT, DIMS, 2)
        yield one_join(rows, f"{kind}, rotation, {DIRECTIONS} directions", code, DIRECTIONS, 2)


def large_joins(*, tiny: bool) -> Iterator[Row]:
    """The exact one of ten times as many rows, which takes minutes."""
    rows = drawn("clustered", 30_000 if tiny else 10_000_000)
    yield one_join(rows, "clustered, exact", EXACT, DIMS, 180)


def one_join(rows: NDArray[np.float32], name: str, screen: Screen, dims: int, bar_s: float) -> Row:
    """Predict, join, check."""
    products = engine(device().type, "bf16")  # pyright: ignore[reportArgumentType]
    pairs_above(rows[: 2 * STRIP], None, COSINE, screen, products)  # the first use of each product takes long
    num_pairs, (flops, bandwidth) = len(rows) ** 2 / 2, peaks()
    seconds = 2 * num_pairs * dims / flops + num_pairs * 4 / bandwidth + rows.nbytes / 2 / UPLOAD_BYTES_S
    found: list[Pairs] = []
    took_s = timed(lambda: found.append(pairs_above(rows, None, COSINE, screen, products)))
    share, num_true = checked(rows, found[0])
    remark = f"{len(found[0].first):,} pairs; recall {share:.4f} of {num_true:,}; bar {bar_s:g} s"
    return f"join of {len(rows):,} x {DIMS}, {name}, s", f"{seconds:.2f}", f"{took_s:.2f}", remark


def checked(rows: NDArray[np.float32], found: Pairs) -> tuple[float, int]:
    """Share of the pairs of sampled rows that were found, and their number."""
    sample = sampled_rows(len(rows), NUM_SAMPLED, 0)
    queries = torch.from_numpy(rows[sample]).to(device())
    true = []
    for start in range(0, len(rows), 2**18):
        row, other = (queries @ torch.from_numpy(rows[start : start + 2**18]).to(device()).T >= COSINE).nonzero().T
        first, second = sample[row.cpu().numpy()], other.cpu().numpy() + start
        true.append(np.stack([np.minimum(first, second), np.maximum(first, second)], 1)[first != second])
    low, high = np.unique(np.concatenate(true), axis=0).T
    return float(np.isin(low * len(rows) + high, found.first * len(rows) + found.second).mean()), len(low)


def steps(*, tiny: bool) -> Iterator[Row]:
    """The training step of benchmarks/train_step.py, ours alone."""
    from step_sides import Worker, make_case, prepare
    from train_step import PREDICTED

    sizes = sorted(PREDICTED, key=lambda key: -key[1])  # the longest batch first
    cases = [("vit_large", *size, PREDICTED[size]) for size in sizes] + [("vit_base", 224, 128, 1000)]
    for arch, size_px, batch_size, images_s in cases:
        case = make_case(
            "vit_small" if tiny else arch, batch_size=2 if tiny else batch_size,
            num_prototypes=1024 if tiny else 131072, drop_path=0.4, device=device().type,
            global_px=56 if tiny else size_px, local_px=98 if size_px == 224 else 224,
        )  # fmt: skip
        with tempfile.TemporaryDirectory() as name:
            prepare(case, Path(name))
            with Worker("ours", case, Path(name), argparse.Namespace(keep_heap=False)) as ours:
                took = [ours.step("bf16") for _ in range(3 if tiny else 15)]
        best = min(step.wall_s for step in took[2:])
        remark = f"best of {len(took) - 2}; peak {took[-1].peak_bytes / 2**30:.1f} GiB"
        what = f"training step of {arch}/14, 2 x {size_px} + 8 x {case.local_px} px, batch {case.batch_size}, images/s"
        yield what, f"{images_s}", f"{case.batch_size / best:.0f}", remark


def embeds(*, tiny: bool) -> Iterator[Row]:
    """Backbones on batches that are on the GPU already; decoding left out."""
    for arch in ("vit_small", "vit_base", "vit_large"):
        size = ARCHITECTURES[arch]
        params = ViTParams(
            patch_size=14, dim=size.dim, depth=1 if tiny else size.depth, heads=size.heads, ffn=size.ffn,
            num_registers=0, layerscale=1e-5, drop_path=0.0, image_size_px=224,
            interpolate_offset=0.1, interpolate_antialias=False,
        )  # fmt: skip
        model = VisionTransformer(params).to(device()).eval()
        images = torch.randn(2 if tiny else 256, 3, 224, 224, device=device())

        def encode(model: VisionTransformer = model, images: Tensor = images) -> None:
            with torch.inference_mode(), torch.autocast(device().type, torch.bfloat16):
                model(images)

        encode()
        took_s = min(timed(encode) for _ in range(3 if tiny else 10))
        flops = params.depth * (257 * 24 * size.dim**2 + 4 * 257**2 * size.dim)
        predicted, measured = peaks()[0] / flops, len(images) / took_s
        remark = f"{100 * measured / predicted:.0f} % of peak"
        yield f"embedding by {arch}/14 at 224 px, bf16, images/s", f"{predicted:.0f} at most", f"{measured:.0f}", remark


def clusters(*, tiny: bool) -> Iterator[Row]:
    """k-means of retrieve."""
    num, dims, num_clusters, num_iterations = (5_000, 384, 20, 2) if tiny else (1_000_000, 384, 10_000, 10)
    rows = drawn("clustered", num)[:, :dims]
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    took_s = timed(lambda: spherical_kmeans(
        InMemory(rows), num_clusters=num_clusters, num_iterations=num_iterations, seed=0, precision="bf16",
        device=device(),
    ))  # fmt: skip
    seconds = 2 * num * num_clusters * dims / peaks()[0] + rows.nbytes / UPLOAD_BYTES_S
    what = f"k-means of {num:,} x {dims} into {num_clusters:,}, s an iteration"
    yield what, f"{seconds:.2f}", f"{took_s / num_iterations:.2f}", f"{num_iterations} iterations and the start"


PARTS: dict[str, Callable[..., Iterator[Row]]] = {
    "tests": gpu_tests, "join": joins, "large_join": large_joins, "step": steps, "embed": embeds, "kmeans": clusters,
}  # fmt: skip


def main() -> None:
    """Print the table, row by row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--out", type=Path)
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args()
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else "a CPU"
    lines = ["Printed by `python benchmarks/gpu.py`.", "", f"{name}, PyTorch {torch.__version__}.", ""]
    lines += ["| what | predicted | measured | |", "|---|---:|---:|---|"]
    print("\n".join(lines[2:]), flush=True)

    def tell(row: Row) -> None:
        lines.append(f"| {' | '.join(row)} |")
        print(lines[-1], flush=True)
        if options.out:
            options.out.write_text("\n".join(lines) + "\n")

    for part in options.parts:
        try:
            for row in PARTS[part](tiny=options.tiny):
                tell(row)
        except Exception as error:  # the other parts are measured nonetheless
            traceback.print_exc()
            tell((part, "", "failed", f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"))


if __name__ == "__main__":
    main()
