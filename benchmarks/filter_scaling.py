"""The filter's looks by one worker and by two, each on a core of its own, in one run; they must make the same bytes.

    python -m benchmarks.filter_scaling FOLDER [FOLDER ...] --num 600

Photographs of the folders are packed into shards once; workers are ready before the clock starts. Prints the first
table of benchmarks/results/filter.md. Where the cores are shared with others' work the clock tells little; the CPU
seconds an image, which grow where two workers hinder each other, tell more: `by CPU` is what they leave of the factor
two. The networks are those of presets/paper-vitl.yaml and need the extra `safety`.
"""

import argparse
import multiprocessing
import os
import time
from multiprocessing.synchronize import Barrier
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from dinov2.curation.filter.filters import FilterParams
from dinov2.params import load_section
from dinov2.records import MANIFEST, write_table
from dinov2.shards import ShardWriter
from dinov2.store import Store, StoreParams
from tasks.fan_out import make_parts
from tasks.filter import PHASES

PRESET = Path("presets/paper-vitl.yaml")
NUM_PARTS = 12


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--num", type=int, default=600, help="photographs (%(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="of each; the fastest counts (%(default)s)")
    options = parser.parse_args()
    preset = load_section(PRESET, "filter", FilterParams)
    cores = sorted(os.sched_getaffinity(0))[:2]
    with TemporaryDirectory() as folder:
        store = pack(options.folders, options.num, Path(folder))
        print(f"{options.num} photographs; load of the machine at the start {os.getloadavg()[0]:.1f}\n")
        print("| looked for | workers | images/s | against one | CPU ms an image | by CPU |\n|---|---|---|---|---|---|")
        for name, changes in (("no networks", {"nsfw": None, "faces": None}), ("NSFW and faces", {})):
            params = preset.model_copy(update={**changes, "part_images": -(-options.num // NUM_PARTS)})
            runs: dict[int, list[tuple[float, float]]] = {1: [], 2: []}
            made: list[bytes] = []
            for repeat in range(options.repeats):
                for num_workers, results in runs.items():
                    work = Path(folder) / f"{name}-{num_workers}-{repeat}"
                    given = {"params": params, "download": Path(folder), "work": work, "store": store}
                    results.append(timed(given, cores[:num_workers]))
                    made.append(b"".join(path.read_bytes() for path in sorted((work / "looks").iterdir())))
            assert len(set(made)) == 1, "workers changed the result"
            alone_cpu_s = min(cpu for _, cpu in runs[1])
            for num_workers, results in runs.items():
                seconds, cpu_s = (min(values) for values in zip(*results, strict=True))
                speedup = min(runs[1])[0] / seconds
                clock = f"{options.num / seconds:.1f} | {speedup:.2f}"
                cpu = f"{1000 * cpu_s / options.num:.1f} | {num_workers * alone_cpu_s / cpu_s:.2f}"
                print(f"| {name} | {num_workers} | {clock} | {cpu} |", flush=True)


def pack(folders: list[Path], num: int, root: Path) -> Store:
    """Evenly spaced photographs of the folders in shards, with a manifest below `root`."""
    files = sorted(path for folder in folders for path in folder.rglob("*.jpg"))
    store = Store(StoreParams(url=str(root / "store"), cache="", remote=None))
    with ShardWriter(store, root / "packing", shard_mb=100) as writer:
        for index in np.linspace(0, len(files) - 1, num).astype(int):
            row = {"mime": "image/jpeg", "url": str(files[index]), "page_url": "", "width": None, "height": None}
            writer.add(files[index].read_bytes(), {**row, "label": None})
    write_table(root / "manifest.parquet", MANIFEST, writer.rows)
    return store


def timed(given: dict[str, Any], cores: list[int]) -> tuple[float, float]:
    """Seconds and CPU seconds until all parts are made by a worker a core."""
    context = multiprocessing.get_context("spawn")
    ready = context.Barrier(len(cores) + 1)
    spent = context.Array("d", len(cores))
    workers = [context.Process(target=work_on, args=(given, place, cores, ready, spent)) for place in range(len(cores))]
    for worker in workers:
        worker.start()
    ready.wait()
    started = time.perf_counter()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    return time.perf_counter() - started, float(np.sum(spent[:]))


def work_on(given: dict[str, Any], place: int, cores: list[int], ready: Barrier, spent: Any) -> None:
    """One worker's share, on its core; looks use as many threads as they see cores."""
    os.sched_setaffinity(0, {cores[place]})
    ready.wait()
    before = time.process_time()
    make_parts(PHASES[0], given, first=place, of=len(cores))
    spent[place] = time.process_time() - before


if __name__ == "__main__":
    main()
