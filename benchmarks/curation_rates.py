"""CPU seconds an image of each stage of the curation, which `--plan` and docs/scale.md count with, as a Markdown table.

Run:   python benchmarks/curation_rates.py --images FOLDER [--out benchmarks/results/curation_rates.md]
       where FOLDER holds photographs, at any depth; they are cropped and scaled to 500 x 375

Each stage is run as its command, one thread, on two crawls of which one is larger by EXTRA images; the difference of
their CPU times, over EXTRA, is what an image costs without what a start costs. dedup is run on random descriptors, of
two numbers, with the exact join; the difference is divided into that of the joins' operations. Products are timed
alone. The least of ROUNDS counts.
"""

import argparse
import os
import platform
import random
import re
import resource
import subprocess
import sys
import time
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from PIL import Image
from warcio.statusandheaders import StatusAndHeaders
from warcio.warcwriter import WARCWriter

from dinov2.curation.descriptors import EMBEDDED
from dinov2.records import MANIFEST, write_json, write_table
from dinov2.store import Store, StoreParams

ROOT = Path(__file__).resolve().parents[1]
SIZE_PX = (500, 375)
IMAGES_A_PAGE = 10
PAGE_KB = 60
FEW, EXTRA = 400, 1600
NUM_SEEDS = 40
ROUNDS = 2
GEMM = 4096
JOINED, DIMS = (4000, 20000), 512
STAGES = {
    "crawl": ["--crawl", "crawl", "--out", "data/crawl"],
    "download": ["--crawl_records", "data/crawl", "--crawl", "crawl", "--out", "data/download"],
    "filter": ["--download", "data/download", "--out", "data/filter"],
    "bootstrap": ["--seeds", "seeds", "--out", "data/bootstrap"],
    "embed": [
        "--filter", "data/filter", "--bootstrap", "data/bootstrap", "--seeds", "seeds", "--evaluation", "seeds",
        "--out", "data/embed",
    ],
}  # fmt: skip
MEASURED = {
    "crawl": ("pages a second and core", 1 / IMAGES_A_PAGE),
    "download": ("images a second and core, out of WARC files", 1.0),
    "filter": ("images a second and core, without networks", 1.0),
    "embed": ("images a second and core: decoded, thumbnail, a ViT of 0.5 M parameters at 64 px", 1.0),
}


def photographs(folder: Path, num: int) -> list[bytes]:
    """`num` different JPEG files, drawn from the photographs."""
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
    draw = random.Random(0)
    made = []
    for number in range(num):
        with Image.open(files[number % len(files)]) as image:
            width, height = image.size
            left, top = draw.uniform(0, 0.3) * width, draw.uniform(0, 0.3) * height
            crop = image.convert("RGB").resize(SIZE_PX, box=(left, top, left + 0.7 * width, top + 0.7 * height))
        stream = BytesIO()
        crop.save(stream, "JPEG", quality=90)
        made.append(stream.getvalue())
    return made


def write_crawl(folder: Path, images: list[bytes]) -> None:
    """One WARC file with the images and pages that show them."""
    folder.mkdir(parents=True)
    words = " ".join(f"word{number}" for number in range(PAGE_KB * 1000 // 8))
    with (folder / "crawl.warc.gz").open("wb") as stream:
        writer = WARCWriter(stream, gzip=True)

        def add(url: str, kind: str, data: bytes) -> None:
            headers = StatusAndHeaders("200 OK", [("Content-Type", kind)], protocol="HTTP/1.1")
            record = writer.create_warc_record(url, "response", payload=BytesIO(data), http_headers=headers)
            writer.write_record(record)

        for page in range(0, len(images), IMAGES_A_PAGE):
            numbers = range(page, min(page + IMAGES_A_PAGE, len(images)))
            tags = "".join(f'<p><img src="/image/{number}.jpg" alt="number {number}"></p>' for number in numbers)
            add(f"https://a.example/page/{page}.html", "text/html", f"<html><body>{tags}<p>{words}</p>".encode())
            for number in numbers:
                add(f"https://a.example/image/{number}.jpg", "image/jpeg", images[number])


def cpu_seconds(images: list[bytes], folder: Path) -> dict[str, float]:
    """CPU time of every stage's command on these images."""
    write_crawl(folder / "crawl", images)
    for number, data in enumerate(photographs_of_seeds(images)):
        path = folder / "seeds" / f"label{number % 2}" / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    text = (ROOT / "params.yaml").read_text().replace("cluster: local", "cluster: debug")
    (folder / "params.yaml").write_text(text.replace("num_steps: 36", "num_steps: 12"))
    return {stage: _timed(stage, options, folder) for stage, options in STAGES.items()}


def _timed(stage: str, options: list[str], folder: Path) -> float:
    """CPU time of a stage's command."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "MLFLOW_DISABLE_TELEMETRY": "true"}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-m", f"tasks.{stage}", *options]
    subprocess.run(command, cwd=folder, env=environment, check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def dedup_seconds(num: int, folder: Path) -> float:
    """CPU time of the command of dedup on `num` random descriptors, with the exact join."""
    folder.mkdir()
    store = Store(StoreParams(url=str(folder / "store"), cache=str(folder / "cache"), remote=None))
    row = {"shard": "none", "offset": 0, "length": 1, "width": 60, "height": 50, "mime": "image/jpeg"}
    rows = [{**row, "id": f"{number:064x}", "url": str(number), "path": str(number)} for number in range(num + 20)]
    sets = {"pool": rows[:num], "seeds": rows[num : num + 10], "evaluation": rows[num + 10 :]}
    blobs = {}
    for seed, (name, members) in enumerate(sets.items()):
        vectors = np.random.Generator(np.random.PCG64(seed)).standard_normal((len(members), DIMS), np.float32)
        np.save(folder / "block.npy", (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16))
        blobs[name] = {"copy": [store.add(folder / "block.npy", ".npy")]}
        write_table(folder / f"data/embed/{name}.parquet", EMBEDDED, members)
    write_json(folder / "data/embed/embeddings.json", blobs)
    manifest = [{name: one.get(name) for name in MANIFEST.names} for one in sets["pool"]]
    write_table(folder / "data/filter/manifest.parquet", MANIFEST, manifest)
    text = (ROOT / "params.yaml").read_text().replace("cluster: local", "cluster: debug")
    (folder / "params.yaml").write_text(re.sub(r"(?m)^(dedup:(?:\n .*)*?\n  method:) \w+", r"\1 exact", text))
    return _timed("dedup", ["--filter", "data/filter", "--embed", "data/embed", "--out", "data/dedup"], folder)


def photographs_of_seeds(images: list[bytes]) -> list[bytes]:
    """Some images, made others by a second compression."""
    made = []
    for data in images[:NUM_SEEDS]:
        stream = BytesIO()
        Image.open(BytesIO(data)).rotate(180).save(stream, "JPEG", quality=70)
        made.append(stream.getvalue())
    return made


def gemm_gflops(dtype: torch.dtype) -> float:
    """Of a product of square matrices on one core, by CPU time."""
    torch.set_num_threads(1)
    left, right = (torch.randn(GEMM, GEMM).to(dtype) for _ in range(2))
    _ = left @ right
    start = time.process_time()
    _ = left @ right
    return 2 * GEMM**3 / (time.process_time() - start) / 1e9


def main() -> None:
    """Measure and print; see the top of this file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    images = photographs(options.images, FEW + EXTRA)
    each: dict[str, list[float]] = {stage: [] for stage in MEASURED}
    joins: list[list[float]] = []
    for _ in range(ROUNDS):
        with TemporaryDirectory() as folder:
            few = cpu_seconds(images[:FEW], Path(folder) / "few")
            many = cpu_seconds(images, Path(folder) / "many")
            joins.append([dedup_seconds(num, Path(folder) / f"join-{num}") for num in JOINED])
        for stage in MEASURED:
            each[stage].append((many[stage] - few[stage]) / EXTRA)
    rows = [(stage, scale / min(each[stage]), what) for stage, (what, scale) in MEASURED.items()]
    operations = (JOINED[1] ** 2 - JOINED[0] ** 2) * DIMS
    rate = operations / min(larger - smaller for smaller, larger in joins) / 1e9
    rows.append(("dedup", rate, f"GFLOP/s a core: the stage, exact join, {JOINED[0]:,} to {JOINED[1]:,} x {DIMS}"))
    rows.append(("fp32", max(gemm_gflops(torch.float32) for _ in range(5)), "GFLOP/s a core, products in float32"))
    rows.append(("bf16", max(gemm_gflops(torch.bfloat16) for _ in range(5)), "GFLOP/s a core, products in bfloat16"))
    kb = np.mean([len(data) for data in images]) / 1e3
    lines = [
        "Printed by `python benchmarks/curation_rates.py --images FOLDER`.",
        "",
        f"One core of {_processor()}; Python {platform.python_version()}, torch {torch.__version__}; photographs of "
        f"{SIZE_PX[0]} x {SIZE_PX[1]} px and {kb:.0f} kB, {IMAGES_A_PAGE} a page of {PAGE_KB} kB; least CPU time of "
        f"{ROUNDS} rounds, {EXTRA} images.",
        "",
        "| rate | value | of |",
        "|---|---:|---|",
        *(f"| {name} | {value:.4g} | {what} |" for name, value, what in rows),
    ]
    print("\n".join(lines))
    if options.out:
        options.out.write_text("\n".join(lines) + "\n")


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return " ".join(line.partition(":")[2].split())
    return platform.machine()


if __name__ == "__main__":
    main()
