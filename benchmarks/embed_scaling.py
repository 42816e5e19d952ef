"""Images a second of the embed stage with one and two workers, and where an image's time goes, as Markdown tables.

Run:   python benchmarks/embed_scaling.py --images DIR [DIR ...] [--sscd FILE --input uint8_nhwc] \
           --out benchmarks/results/embed-scaling.md
       (DIR: photographs in any folders; FILE: SSCD as TorchScript or ONNX, or package:<distribution>/<file>)

The pool is chosen photographs in shards. Every way runs the stage's own parts (tasks/embed.py) in processes of its own,
in turns; the clock runs from when all workers have loaded their networks to when the last one is done. Two cases: the
demo's networks (thumbnails and a small ViT), where decoding counts, and SSCD with a ViT-S/14 of random weights.
"By CPU" is the same ratio from CPU seconds, for cores that nobody else uses: on a shared machine it tells more than the
clock. GiB: the largest worker's peak.
"""

import argparse
import os
import random
import resource
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import get_context
from multiprocessing.synchronize import Barrier
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from dinov2.curation.model_file import PACKAGE, in_package
from dinov2.curation.sniff import sniff_mime
from dinov2.data.sources import SUFFIXES
from dinov2.models.params import ViTParams
from dinov2.params import validate
from dinov2.records import MANIFEST, read_table, sha256_file, write_table
from dinov2.shards import EXTENSIONS, ShardReader, ShardWriter
from dinov2.store import Store, StoreParams
from tasks.embed import PHASES, EmbedParams
from tasks.fan_out import make_parts

BLOCK_ROWS, BATCH = 32, 8
THUMBNAIL = {"kind": "thumbnail", "size_px": 16, "dims": 128, "shrinkage": 0.1}
VIT = {
    "ffn": "mlp", "num_registers": 0, "layerscale": 1.0, "drop_path": 0.0, "interpolate_offset": 0.0,
    "interpolate_antialias": False,
}  # fmt: skip
SMALL = {**VIT, "patch_size": 8, "dim": 96, "depth": 4, "heads": 3, "image_size_px": 64}  # as in params.yaml
VIT_S = {**VIT, "patch_size": 14, "dim": 384, "depth": 12, "heads": 6, "image_size_px": 224}


class Way(NamedTuple):
    """How a run is shared out."""

    workers: int
    threads: int


WAYS = (Way(1, 1), Way(2, 1), Way(1, 2))


class Run(NamedTuple):
    """What one run of a way took."""

    seconds: float
    cpu_s: float
    peak_gib: float
    """Of the largest worker."""


class Case(NamedTuple):
    """Networks, and how many photographs they get."""

    name: str
    backbone: dict[str, Any]
    copy_descriptor: dict[str, Any]
    num: int

    def params(self) -> EmbedParams:
        """Params of the stage."""
        values = {
            "semantic": {"kind": "ours", "precision": "fp32"}, "copy_descriptor": self.copy_descriptor,
            "block_rows": BLOCK_ROWS, "batch_size": BATCH, "shard_mb": 100, "may_be_empty": [],
        }  # fmt: skip
        return validate(EmbedParams, values, where="embed")


def pack(folders: list[Path], num: int, root: Path) -> None:
    """A pool of `num` photographs; the first is the only seed and the only evaluation image."""
    found = [path for folder in folders for path in sorted(folder.rglob("*")) if path.suffix.lower() in SUFFIXES]
    chosen = random.Random(0).sample(found, min(num, len(found)))
    about = {"url": None, "page_url": None, "label": None, "width": 0, "height": 0}
    with ShardWriter(store_below(root), root / "packing", shard_mb=100) as writer:
        for path in chosen:
            data = path.read_bytes()
            if (mime := sniff_mime(data[:64])) in EXTENSIONS:
                writer.add(data, {**about, "mime": mime})
    write_table(root / "filter/manifest.parquet", MANIFEST, writer.rows)
    for name in ("seeds", "evaluation"):
        (root / name / "a").mkdir(parents=True)
        (root / name / "a" / chosen[0].name).write_bytes(chosen[0].read_bytes())


def store_below(root: Path) -> Store:
    """The store of a benchmark's folder."""
    return Store(StoreParams(url=str(root / "store"), cache=str(root / "cache"), remote=None))


def save_random(params: ViTParams, folder: Path) -> None:
    """A backbone of random weights."""
    from dinov2.hub import BackboneCard, save_backbone
    from dinov2.models.vit import VisionTransformer

    half = (0.5, 0.5, 0.5)
    size_px = params.image_size_px
    card = BackboneCard(architecture=params, image_size_px=size_px, mean=half, std=half, training={}, licence="none")
    save_backbone(folder, VisionTransformer(params), card)


def values(case: Case, root: Path, work: Path) -> dict[str, Any]:
    """What the stage's functions take."""
    paths = {name: root / name for name in ("filter", "bootstrap", "seeds", "evaluation")}
    return {"params": case.params(), **paths, "work": work, "store": store_below(root)}


class Together(NamedTuple):
    """What the workers of a run share."""

    ready: Barrier
    queue: Any


def work_on(case: Case, root: Path, work: Path, share: tuple[int, int], together: Together) -> None:
    """A worker: warm up on a block elsewhere, wait for the others, make a share of the parts."""
    embed = PHASES[0]
    warm = values(case, root, root / f"warm-{os.getpid()}")
    warm["work"].mkdir()
    embed.count(**{name: warm[name] for name in ("params", "filter", "seeds", "evaluation", "work", "store")})
    embed.do(part=0, **warm)
    together.ready.wait()
    started, before = time.time(), time.process_time()
    make_parts(embed, values(case, root, work), first=share[0], of=share[1])
    peak_gib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    together.queue.put((started, time.time(), time.process_time() - before, peak_gib))


def measure(case: Case, root: Path, work: Path, way: Way) -> Run:
    """Run all parts the given way."""
    work.mkdir()
    context = get_context("spawn")
    together = Together(context.Barrier(way.workers), context.Queue())
    os.environ["OMP_NUM_THREADS"] = str(way.threads)  # of the children
    workers = [
        context.Process(target=work_on, args=(case, root, work, (worker, way.workers), together))
        for worker in range(way.workers)
    ]
    for process in workers:
        process.start()
    told = [together.queue.get() for _ in workers]
    for process in workers:
        process.join()
    started, ended, cpu_s, peak_gib = zip(*told, strict=True)
    return Run(max(ended) - min(started), sum(cpu_s), max(peak_gib))


def table(case: Case, root: Path, rounds: int) -> Iterator[str]:
    """Images a second of every way, the median of the rounds."""
    num = len(read_table(root / "filter/manifest.parquet", MANIFEST)) + 2
    runs: dict[Way, list[Run]] = defaultdict(list)
    for turn in range(rounds):
        for way in WAYS:
            runs[way].append(measure(case, root, root / f"work-{turn}-{way.workers}-{way.threads}", way))
            print(case.name, way, runs[way][-1], file=sys.stderr)
    speed = {way: statistics.median(num / run.seconds for run in its) for way, its in runs.items()}
    best = {way: max(num / run.seconds for run in its) for way, its in runs.items()}
    yield f"## {case.name}: {num} images"
    yield ""
    yield "| workers x threads | images/s, median | times one | best | times one | CPU ms an image | by CPU | GiB |"
    yield "|---|---|---|---|---|---|---|---|"
    cpu_ms = {way: statistics.median(1000 * run.cpu_s / num for run in its) for way, its in runs.items()}
    one = WAYS[0]
    for way, its in runs.items():
        clock = f"{speed[way]:.1f} | {speed[way] / speed[one]:.2f} | {best[way]:.1f} | {best[way] / best[one]:.2f}"
        by_cpu = way.workers * way.threads * cpu_ms[one] / cpu_ms[way]
        peak_gib = max(run.peak_gib for run in its)
        yield f"| {way.workers} x {way.threads} | {clock} | {cpu_ms[way]:.1f} | {by_cpu:.2f} | {peak_gib:.2f} |"
    yield ""


def shares(case: Case, root: Path) -> Iterator[str]:
    """CPU time of each step of one image, on one thread."""
    import torch

    from dinov2.curation.embed import embedder as stage

    spent: dict[str, float] = defaultdict(float)

    def timed(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            with clock(spent, name):
                return function(*args)

        return call

    torch.set_num_threads(1)
    params = case.params()
    embedder = stage.Embedder(root / "bootstrap", params.semantic, params.copy_descriptor, batch_size=BATCH)
    rows = read_table(root / "filter/manifest.parquet", MANIFEST)
    read = ShardReader(store_below(root)).read
    embedder.block(rows[:BATCH], read, first=0, to_pack=False)
    for name, encoder in (("semantic", embedder.semantic), ("copy", embedder.copy)):
        for what in ("prepare", "encode"):
            setattr(encoder, what, timed(f"{name}: {what}", getattr(encoder, what)))
    stage.decode_rgb = timed("decode", stage.decode_rgb)
    with clock(spent, "all"):
        embedder.block(rows, timed("read", read), first=0, to_pack=False)
    whole = spent.pop("all")
    spent["rest (sha256, Python)"] = whole - sum(spent.values())
    yield f"| {case.name}: step | CPU ms an image | share % |"
    yield "|---|---|---|"
    for name, seconds in spent.items():
        yield f"| {name} | {1000 * seconds / len(rows):.2f} | {100 * seconds / whole:.0f} |"
    yield ""


@contextmanager
def clock(spent: dict[str, float], name: str) -> Iterator[None]:
    """Adds the process's CPU seconds."""
    before = time.process_time()
    yield
    spent[name] += time.process_time() - before


def main() -> None:
    """Print the tables, and write them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, nargs="+", required=True)
    parser.add_argument("--sscd")
    parser.add_argument("--input", choices=["float_nchw", "uint8_nhwc"], default="float_nchw")
    parser.add_argument("--rounds", type=int, default=3, help="of all ways (default: %(default)s)")
    parser.add_argument("--num", type=int, nargs=2, default=[1024, 64], help="photographs a case (1024 64)")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    cases = [Case("Thumbnails and the demo's ViT", SMALL, THUMBNAIL, options.num[0])]
    if options.sscd is not None:
        file = in_package(options.sscd, "--sscd") if options.sscd.startswith(PACKAGE) else Path(options.sscd)
        about = {"kind": "sscd", "path": options.sscd, "sha256": sha256_file(file), "input": options.input}
        cases.append(Case("SSCD and ViT-S/14", VIT_S, {**about, "resize": "square", "size_px": 320}, options.num[1]))
    lines = [
        f"Printed by `python benchmarks/embed_scaling.py`, {os.cpu_count()} cores, load at the start "
        f"{os.getloadavg()[0]:.1f}; {options.rounds} rounds of each way, in turns.",
        "",
    ]
    for case in cases:
        with TemporaryDirectory() as folder:
            root = Path(folder)
            pack(options.images, case.num, root)
            save_random(validate(ViTParams, case.backbone, where="backbone"), root / "bootstrap")
            lines += [*table(case, root, options.rounds), *shares(case, root)]
        options.out.write_text("\n".join(lines).rstrip() + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
