"""A whole run's outputs, tiny and made up, but with real images in a real store: what the report is rendered from."""

import csv
import io
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image, ImageFilter

from dinov2.records import CURATED, MANIFEST, REMOVED, write_json, write_table
from dinov2.shards import ShardWriter
from dinov2.store import Store, StoreParams

NUM_TEST = 60
LABELS = ("bark", "moss", "sand")
KNN = {"random": 0.2, "bootstrap": 0.55, "pretrain": 0.7, "highres": 0.75, "demo-s": 0.6, "demo-b": 0.72}
DROPPED = {
    "crawl": {"forbidden_domain": 4, "not_http": 2},
    "download": {"http_404": 5},
    "filter": {"near_constant": 3, "does_not_decode": 1, "same_hash": 2},
    "embed": {"undecodable": 1},
    "dedup": {"near_copy": 6},
    "retrieve": {"not_retrieved": 8},
}


class Run(NamedTuple):
    """Where the outputs lie."""

    outputs: dict[str, Path]
    seeds: Path
    store: Store


def photographs(num: int) -> list[bytes]:
    """JPEG files of smooth noise, all different."""
    generator = np.random.Generator(np.random.PCG64(0))
    files = []
    for _ in range(num):
        noise = Image.fromarray(generator.integers(0, 256, (64, 80, 3), dtype=np.uint8))
        buffer = io.BytesIO()
        noise.filter(ImageFilter.GaussianBlur(4)).save(buffer, "JPEG", quality=90)
        files.append(buffer.getvalue())
    return files


def write_run(root: Path, images: list[bytes]) -> Run:
    """All stages' outputs below `root`; there must be images enough for every one that is kept or removed."""
    stages = (
        "crawl", "download", "filter", "bootstrap", "embed", "dedup", "retrieve", "pretrain", "highres", "distill",
        "evaluate",
    )  # fmt: skip
    outputs = {stage: root / "data" / stage for stage in stages}
    for folder in outputs.values():
        folder.mkdir(parents=True)
    store = Store(StoreParams(url=str(root / "store"), cache=str(root / "cache"), remote=None))
    with ShardWriter(store, root / "shards", shard_mb=100) as writer:
        for number, data in enumerate(images):
            label = LABELS[number % len(LABELS)]
            row = {
                "mime": "image/jpeg",
                "width": 80,
                "height": 64,
                "url": f"http://crawled/{number}.jpg",
                "label": label,
            }
            writer.add(data, row)
    write_table(outputs["download"] / "manifest.parquet", MANIFEST, writer.rows)
    _curate(outputs, writer.rows)
    for stage in ("bootstrap", "pretrain", "highres"):
        _train(outputs[stage], stage)
    _record(outputs["distill"], "distill", 10, {})
    for student in ("demo-s", "demo-b"):
        _train(outputs["distill"] / student, "distill")
    _evaluate(outputs["evaluate"])
    seeds = root / "inputs" / "seeds"
    seeds.mkdir(parents=True)
    write_json(
        seeds.parent / "about.json", {"task": "instance recognition", "sentence": "The label is the photograph."}
    )
    return Run(outputs, seeds, store)


def _record(
    folder: Path, stage: str, num_in: int, dropped: dict[str, int], metrics: dict[str, float] | None = None
) -> None:
    kept = num_in - sum(dropped.values())
    record = {
        "stage": stage, "version": 1, "arguments": {}, "inputs": {},
        "params": {"optim": {"lr": 0.001}, "kinds": [1, 2]},
        "counts": {"num_in": num_in, "num_kept": kept, "dropped": dropped},
    }  # fmt: skip
    write_json(folder / "record.json", record)
    write_json(folder / "metrics.json", metrics or {"num_kept": float(kept)})


def _curate(outputs: dict[str, Path], rows: list[dict[str, Any]]) -> None:
    """Records and removed.parquet of the funnel; the images removed are the first of `rows`."""
    num = 60
    place = 0
    for stage, dropped in DROPPED.items():
        _record(outputs[stage], stage, num, dropped)
        num -= sum(dropped.values())
        removed = []
        for reason, count in dropped.items():
            for _ in range(count):
                known = stage in ("filter", "dedup", "retrieve")
                witness = rows[-1 - place % 5]["id"] if stage == "dedup" or reason == "same_hash" else None
                removed.append(
                    {
                        "id": rows[place]["id"] if known else None,
                        "url": f"http://crawled/{place}.jpg",
                        "reason": reason,
                        "witness_id": witness,
                        "cosine": 0.97 if stage == "dedup" else None,
                    }
                )
                place = (place + 1) % len(rows) if known else place
        write_table(outputs[stage] / "removed.parquet", REMOVED, removed)
    seeds = [{**row, "origin": "seed", "seed_id": row["id"], "cosine": 1.0, "cluster": 0} for row in rows[:9]]
    found = [
        {**row, "origin": "sample", "seed_id": seeds[number % 9]["id"], "cosine": 0.99 - 0.01 * number, "cluster": 0}
        for number, row in enumerate(rows[9:30])
    ]
    write_table(outputs["retrieve"] / "manifest.parquet", CURATED, seeds + found)


def _train(folder: Path, stage: str) -> None:
    folder.mkdir(exist_ok=True)
    steps = np.arange(0, 300, 5)
    generator = np.random.Generator(np.random.PCG64(len(folder.name)))
    with (folder / "curves.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["step", "dino_global", "ibot", "lr"])
        for step in steps:
            fall = np.exp(-step / 120)
            noise = generator.normal(0, 0.08, 2)
            writer.writerow([step, 3 + 4 * fall + noise[0], 4 + 2 * fall + noise[1], 0.001])
    architecture = {
        "patch_size": 8, "dim": 192, "depth": 6, "heads": 3, "ffn": "mlp", "num_registers": 0, "layerscale": 1e-5,
        "drop_path": 0.0, "image_size_px": 64, "interpolate_offset": 0.1, "interpolate_antialias": False,
    }  # fmt: skip
    card = {
        "architecture": architecture, "image_size_px": 64, "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225],
        "training": {"steps": 300}, "licence": "Apache-2.0",
    }  # fmt: skip
    write_json(folder / "backbone.json", card)
    if stage != "distill":
        _record(folder, stage, 20, {})


def _evaluate(folder: Path) -> None:
    generator = np.random.Generator(np.random.PCG64(3))
    labels = [LABELS[number % 3] for number in range(NUM_TEST)]
    difficulty = generator.permutation(NUM_TEST) / NUM_TEST
    baselines = {"histogram_knn": 0.6, "pixels_knn": 0.25}
    for model, share in {**KNN, "baselines": 0.0}.items():
        place = folder / model
        (place / "figures").mkdir(parents=True)
        shares = baselines if model == "baselines" else {"knn": share, "patch_knn": share - 0.05, "linear": share + 0.1}
        methods = {
            method: [label if hard < wanted else "none" for label, hard in zip(labels, difficulty, strict=True)]
            for method, wanted in shares.items()
        }
        ids = [f"{label}/{number}.jpg" for number, label in enumerate(labels)]
        (place / "predictions.json").write_text(json.dumps({"ids": ids, "labels": labels, "methods": methods}))
        metrics = {"num_train": 90.0, "num_test": float(NUM_TEST), "num_classes": 3.0}
        for method, predicted in methods.items():
            top1 = float(np.mean([a == b for a, b in zip(predicted, labels, strict=True)]))
            metrics |= {
                f"{method}_top1": top1, f"{method}_top1_low": top1 - 0.1, f"{method}_top1_high": min(top1 + 0.1, 1.0),
                f"{method}_top5": min(top1 + 0.2, 1.0), f"{method}_top1_k1": top1, f"{method}_top1_k10": top1,
            }  # fmt: skip
        if model != "baselines":
            metrics |= {"num_parameters": 2_700_000.0, "image_size_px": 64.0, "effective_rank": 20.0}
            pixels = generator.integers(0, 256, (64, 128, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(place / "figures" / "pca.png")
        _record(place, "evaluate", NUM_TEST, {}, metrics)


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The outputs of a made-up run, to read."""
    return write_run(tmp_path_factory.mktemp("run"), photographs(40))


@pytest.fixture
def own_run(tmp_path: Path) -> Run:
    """The same, to change."""
    return write_run(tmp_path, photographs(40))
