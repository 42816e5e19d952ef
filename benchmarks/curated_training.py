"""Whether training on the curated set beats training on the raw pool, as a Markdown table.

Run:   python -m benchmarks.curated_training --work DIR [--runs sscd thumbnail] [--seeds 0 1 2]
       (after benchmarks.planted with that DIR; a run is known by the copy descriptors it had there)

Both networks see the same recipe (presets/few-steps.yaml, NUM_STEPS steps) and the same number of different
images: what retrieve chose, and as many drawn at random from all that download stored, unfit images and copies among
them (those that do not decode are skipped, as ever). Judged by k-NN (CLS, k 10) from the seeds to the held-out images.
The raw pool also has images that copy held-out ones, which curation takes out: a third set is drawn from the raw pool
without those. A fourth, drawn from the unique images, tells cleaning from choosing.
"""

import argparse
import json
import random
import tempfile
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch

import tasks.evaluate
import tasks.pretrain
from dinov2.params import read_yaml, validate
from dinov2.records import CURATED, write_table
from dinov2.store import Store, StoreParams

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks/results/curated_training.md"
NUM_STEPS = 300
SETS = {  # the stage whose images are drawn from
    "curated": "retrieve",
    "raw pool": "download",
    "raw pool without held-out copies": "download",
    "unique pool": "dedup",
}


def held_out_copies(data: Path) -> set[str]:
    """Ids of the images that dedup took out as copies of held-out ones, before faces were blurred."""
    removed = pq.read_table(data / "dedup/removed.parquet").to_pylist()
    ids = {row["id"] for row in removed if row["reason"].startswith("evaluation_copy")}
    kept = pq.read_table(data / "filter/manifest.parquet").to_pylist()
    return ids | {row["source_id"] for row in kept if row["id"] in ids}


def drawn(manifest: Path, without: set[str], num: int, seed: int) -> list[dict[str, Any]]:
    """`num` rows of a manifest, in its order."""
    rows = [row for row in pq.read_table(manifest).to_pylist() if row["id"] not in without]
    chosen = sorted(random.Random(seed).sample(range(len(rows)), min(num, len(rows))))
    return [{name: rows[place].get(name) for name in CURATED.names} for place in chosen]


def judged(data: Path, manifest: list[dict[str, Any]], seed: int, folder: Path) -> dict[str, dict[str, float]]:
    """Metrics of the untrained and of the trained network of a seed."""
    params: dict[str, Any] = read_yaml(ROOT / "params.yaml")
    recipes: dict[str, Any] = read_yaml(ROOT / "presets/few-steps.yaml")
    recipe = {**recipes["pretrain"], "seed": seed, "num_steps": NUM_STEPS}
    (folder / "set").mkdir(parents=True)
    write_table(folder / "set/manifest.parquet", CURATED, manifest)
    backbone = folder / "backbone"
    backbone.mkdir()
    store = Store(StoreParams(url=str(data.parent / "store"), cache=str(folder), remote=None))
    pretrain = validate(tasks.pretrain.PretrainParams, recipe, where="recipe")
    tasks.pretrain.run(pretrain, retrieve=folder / "set", out=backbone, work=folder / "work", store=store)
    evaluate = validate(tasks.evaluate.EvaluateParams, {**params["evaluate"], "seed": seed}, where="evaluate")
    inputs = {name: data.parent / "inputs" / name for name in ("seeds", "evaluation")}
    found = {}
    for model in ("random", "trained"):
        (folder / model).mkdir()
        summary = tasks.evaluate.run(evaluate, model=model, backbone=backbone, **inputs, out=folder / model)
        found[model] = summary.metrics
    return found


def lines(data: Path, seeds: list[int]) -> Iterator[str]:
    """The table."""
    num = pq.read_metadata(data / "retrieve/manifest.parquet").num_rows
    yield f"| seed | {' | '.join(f'{name} ({num}) %' for name in SETS)} | untrained % |"
    yield "|---|" + "---|" * (len(SETS) + 1)
    for seed in seeds:
        cells, random_top1 = [], 0.0
        for name, stage in SETS.items():
            without = held_out_copies(data) if "without" in name else set[str]()
            with tempfile.TemporaryDirectory() as folder:
                manifest = drawn(data / stage / "manifest.parquet", without, num, seed)
                found = judged(data, manifest, seed, Path(folder))
            cells.append(f"{100 * found['trained']['knn_top1']:.1f}")
            random_top1 = found["random"]["knn_top1"]
        yield f"| {seed} | {' | '.join(cells)} | {100 * random_top1:.1f} |"


def main() -> None:
    """Train, judge, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--runs", nargs="+", default=["sscd"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args()
    torch.set_num_threads(1)
    text = ["Printed by `python -m benchmarks.curated_training`; its first lines say what is compared.", ""]
    for run in options.runs:
        data = options.work / f"data-{run}"
        embedder = json.loads((data / "embed/record.json").read_text())["params"]["semantic"]
        about = Path(embedder["path"]).name if "path" in embedder else "the bootstrapped network"
        heading = [f"Copies found by {run}, seeds' neighbours by {about}:", ""]
        for line in chain(heading, lines(data, options.seeds), [""]):
            text.append(line)
            print(line, flush=True)
        RESULTS.write_text("\n".join(text))


if __name__ == "__main__":
    main()
