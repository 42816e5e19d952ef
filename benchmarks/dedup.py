"""What finding near-copies costs, beside faiss, and what of them is found, as a Markdown table.

Run:   python benchmarks/dedup.py [--real NAME=FILE.npy=COSINE ...] [--rows 100000]     (half an hour of one core)
       python benchmarks/dedup.py --growth 10000 100000 1000000                            (an hour; a million last)

Ours is the stage's parts on float16 blocks from disk: comparing with sampled rows, planning, joining; the measuring of
recall is part of it, the imports are not. faiss is IndexFlatIP with k = 64 on one float32 array in memory. Each is a
process of one thread. The true pairs are those of the exact join; faiss must find no other. benchmarks/dedup_vectors.py
draws the rows, and makes files of real ones.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from dedup_vectors import drawn
from numpy.typing import NDArray

import tasks.dedup
from dinov2.curation.dedup.join import Pairs, merged
from dinov2.curation.dedup.pairs import PairFiles
from dinov2.curation.descriptors import EMBEDDED, store_block
from dinov2.params import validate
from dinov2.records import write_json, write_table
from dinov2.store import Store, StoreParams
from tasks.dedup import DedupParams
from tasks.fan_out import make_parts

RESULTS = Path("benchmarks/results")
BAR, MIN_RECALL, MAX_GIB = 0.25, 0.99, 4.0
BLOCK_ROWS = 32768
COSINE = 0.6
NEIGHBOURS = 64


def write_inputs(folder: Path, vectors: NDArray[np.float16]) -> None:
    """Inputs of the stage: one seed, one evaluation image like nothing else, and the rows as pool."""
    store = Store(StoreParams(url=str(folder / "store"), cache=str(folder / "cache"), remote=None))
    away = np.zeros((1, vectors.shape[1]), np.float16)
    away[0, 0] = 1
    sets = {"seeds": away, "evaluation": -away, "pool": vectors}
    index = {}
    for name, rows in sets.items():
        blocks = [rows[start : start + BLOCK_ROWS] for start in range(0, len(rows), BLOCK_ROWS)]
        index[name] = {"copy": [store_block(store, folder, block) for block in blocks]}
        empty = dict.fromkeys(EMBEDDED.names) | {"width": 1, "height": 1, "path": "0.jpg"}
        write_table(folder / "embed" / f"{name}.parquet", EMBEDDED, (empty | {"id": f"{i}"} for i in range(len(rows))))
    write_json(folder / "embed" / "embeddings.json", index)
    (folder / "filter").mkdir()
    (folder / "filter" / "manifest.parquet").symlink_to(folder / "embed" / "pool.parquet")


def ours(folder: Path, method: str, precision: str, cosine: float) -> dict[str, Any]:
    """The parts of the stage; its pairs stay in work/join of `folder`."""
    values = {
        "min_cosine": cosine, "evaluation_sets": {"held_out": {"folder": "", "min_cosine": 0.99}}, "method": method,
        "min_recall": MIN_RECALL, "sample_rows": 2048, "seed": 0, "block_rows": BLOCK_ROWS, "device": "cpu",
        "precision": precision, "warn_component_share": 1.0,
    }  # fmt: skip
    store = Store(StoreParams(url=str(folder / "store"), cache=str(folder / "cache"), remote=None))
    params = validate(DedupParams, values, where="benchmark")
    folders = {name: folder / name for name in ("filter", "embed", "work")}
    given = {"params": params, "store": store, **folders}
    _warm_up(precision)
    started = time.process_time()
    for phase in tasks.dedup.PHASES:
        make_parts(phase, given, first=0, of=1)
    cpu_s = time.process_time() - started
    plan = json.loads((folder / "work" / "plan" / "plan.json").read_text())
    return {"cpu_s": cpu_s, "plan": plan}


def faiss_flat(folder: Path, cosine: float) -> dict[str, Any]:
    """IndexFlatIP, k = 64, without the row itself; its pairs go to work/join of `folder`."""
    import faiss

    from dinov2.curation.dedup.pairs import save_pairs

    vectors = np.load(folder / "vectors.npy").astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    faiss.omp_set_num_threads(1)
    started = time.process_time()
    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(vectors)
    found, neighbour = index.search(vectors, NEIGHBOURS)
    first, place = np.nonzero(found >= cosine)
    second = neighbour[first, place]
    other = first != second
    low, high = np.minimum(first, second)[other], np.maximum(first, second)[other]
    pairs = merged([Pairs(low, high, found[first, place][other])])
    cpu_s = time.process_time() - started
    save_pairs(folder / "work" / "join" / "0.npy", pairs, first=1, second=1)  # the seed is row 0 of ours
    return {"cpu_s": cpu_s}


def _warm_up(precision: str) -> None:
    """Import what products need, which takes seconds that are not the join's."""
    from dinov2.curation.dedup.products import engine

    products = engine("cpu", "bf16" if precision == "bf16" else "fp32")
    rows = products.prepare(np.eye(8, dtype=np.float32))
    products.hits(rows, rows, 0.5)


def child(side: str, folder: Path, cosine: float) -> None:
    """Do one side's work and print what it took."""
    method, _, precision = side.partition(" ")
    told = faiss_flat(folder, cosine) if method == "IndexFlatIP" else ours(folder, method, precision, cosine)
    print(json.dumps({**told, "peak_gib": _peak_gib()}))


def _peak_gib() -> float:
    """Of this process's memory; getrusage would count its parent's from before the exec."""
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 2**20


def measure(side: str, folder: Path, cosine: float) -> tuple[dict[str, Any], NDArray[np.int64]]:
    """What one side took, and the keys of its pairs."""
    subprocess.run(["rm", "-rf", str(folder / "work")], check=True)
    command = [sys.executable, __file__, "--child", side, str(folder), str(cosine)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr)
    files = PairFiles(sorted((folder / "work" / "join").glob("*.npy")))
    pairs = [part.first << 32 | part.second for part in files]
    told = json.loads(done.stdout.splitlines()[-1])
    print(side, told, sum(map(len, pairs)), flush=True)
    return told, np.sort(np.concatenate(pairs))


def described(plan: dict[str, Any] | None) -> str:
    """A plan in a few words."""
    if plan is None:
        return ""
    share, low, num = plan["recall"]
    if plan["method"] == "exact":
        return "exact, all pairs"
    how = {"rotation": f"{plan.get('num_directions')} directions", "cells": f"{plan['num_visits']} visits"}
    return f"{plan['method']}, {how.get(plan['method'], 'all pairs')}; {share:.4f} (> {low:.4f}) of {num}"


def compare(name: str, vectors: NDArray[np.float16], cosine: float, sides: list[str]) -> list[str]:
    """A table of all sides on the same rows."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        np.save(folder / "vectors.npy", vectors)
        write_inputs(folder, vectors)
        told = {side: measure(side, folder, cosine) for side in sides}
    truth = told["exact bf16"][1]
    assert np.isin(told["IndexFlatIP"][1], truth).mean() > 0.999, "faiss found pairs that the exact join did not"
    base = told["IndexFlatIP"][0]["cpu_s"]
    lines = [
        f"## {name}: {len(vectors):,} x {vectors.shape[1]}, cosine >= {cosine:g}, {len(truth):,} pairs", "",
        "| side | CPU s | of faiss | pair recall | plan; recall on the sample (95 % bound), pairs |",
        "|---|---|---|---|---|",
    ]  # fmt: skip
    for side, (taken, pairs) in told.items():
        share = float(np.isin(truth, pairs).mean())
        lines.append(
            f"| {side} | {taken['cpu_s']:.1f} | {taken['cpu_s'] / base:.3f} | {share:.4f} | "
            f"{described(taken.get('plan'))} |"
        )
    taken, pairs = told["auto bf16"]
    met = taken["cpu_s"] <= BAR * base and np.isin(truth, pairs).mean() >= MIN_RECALL
    bar = f"Bar (auto bf16: {BAR:g} of faiss at a recall of {MIN_RECALL:g}): {'met' if met else 'missed'}."
    return [*lines, "", bar, ""]


def grow(sizes: list[int]) -> list[str]:
    """A table of the stage's parts over numbers of rows; recall as the stage measures it."""
    lines = [
        "| rows | kind | CPU s | ns a pair | peak GiB | pairs found | plan; recall on the sample (95 % bound), pairs |",
        "|---|---|---|---|---|---|---|",
    ]
    worst = 0.0
    for num in sizes:
        for kind in ("unclustered", "clustered"):
            with tempfile.TemporaryDirectory() as place:
                write_inputs(Path(place), drawn(kind, num))
                taken, pairs = measure("auto bf16", Path(place), COSINE)
            worst = max(worst, taken["peak_gib"])
            each_ns = 1e9 * taken["cpu_s"] / (num * num / 2)
            lines.append(
                f"| {num:,} | {kind} | {taken['cpu_s']:.1f} | {each_ns:.2f} | {taken['peak_gib']:.2f} | "
                f"{len(pairs):,} | {described(taken['plan'])} |"
            )
            print(lines[-1], flush=True)
    return [*lines, "", f"Bar (memory below {MAX_GIB:g} GiB): {'met' if worst < MAX_GIB else 'missed'}."]


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--child", nargs=3, metavar=("SIDE", "FOLDER", "COSINE"), help=argparse.SUPPRESS)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--real", nargs="*", default=[], metavar="NAME=FILE.npy=COSINE")
    parser.add_argument("--kinds", nargs="*", default=["unclustered", "clustered"], help="of drawn rows")
    parser.add_argument("--growth", type=int, nargs="+", default=[])
    options = parser.parse_args()
    if options.child:
        child(options.child[0], Path(options.child[1]), float(options.child[2]))
        return
    name = "dedup-growth" if options.growth else "dedup"
    if options.growth:
        lines = grow(options.growth)
    else:
        sides = ["IndexFlatIP", "exact bf16", "auto fp32", "auto bf16"]
        lines = []
        for kind in options.kinds:
            lines += compare(kind, drawn(kind, options.rows), COSINE, sides)
        for real in options.real:
            label, file, cosine = real.split("=")
            lines += compare(label, np.load(file), float(cosine), sides)
    text = "\n".join(lines)
    print(text)
    about = "One thread of a processor with bf16 instructions; CPU seconds without imports."
    (RESULTS / f"{name}.md").write_text(f"Printed by `python benchmarks/dedup.py`.\n\n{about}\n\n{text}\n")


if __name__ == "__main__":
    main()
