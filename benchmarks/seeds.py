"""How much pretraining gains over the untrained network, for several seeds, as a Markdown table.

Run:   python benchmarks/seeds.py [--seeds 0 1 2]      (after `make demo`, from the repository's root; minutes a seed)

For each seed it pretrains on the curated set that the demo left in data/retrieve, with the params of params.yaml but
that seed, and evaluates the result and an untrained network of the same seed. It needs no Prefect, DVC or MLflow.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import tasks.evaluate
import tasks.pretrain
from dinov2.params import load_section, read_yaml, validate
from dinov2.store import Store, StoreParams

PARAMS = Path("params.yaml")
SHOWN = ("knn_top1", "patch_knn_top1", "linear_top1")


def measure(seed: int, folder: Path) -> dict[str, dict[str, float]]:
    """metrics of the random and the pretrained network of one seed."""
    values: dict[str, Any] = read_yaml(PARAMS)
    store = Store(load_section(PARAMS, "store", StoreParams))
    pretrain = validate(tasks.pretrain.PretrainParams, {**values["pretrain"], "seed": seed}, where="pretrain")
    evaluate = validate(tasks.evaluate.EvaluateParams, {**values["evaluate"], "seed": seed}, where="evaluate")
    backbone, work = folder / "pretrain", folder / "work"
    backbone.mkdir(parents=True)
    tasks.pretrain.run(pretrain, retrieve=Path("data/retrieve"), out=backbone, work=work, store=store)
    inputs = {name: Path(values["inputs"][name]) for name in ("seeds", "evaluation")}
    found = {}
    for model in ("random", "pretrain"):
        out = folder / model / "judged"
        out.mkdir(parents=True)
        summary = tasks.evaluate.run(evaluate, model=model, backbone=backbone, **inputs, out=out)
        found[model] = summary.metrics
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    lines = [
        "| seed | network | k-NN of CLS % | k-NN of mean patch % | linear % |",
        "|---|---|---|---|---|",
    ]
    for seed in parser.parse_args().seeds:
        with tempfile.TemporaryDirectory() as folder:
            for model, metrics in measure(seed, Path(folder)).items():
                cells = " | ".join(f"{100 * metrics[name]:.1f}" for name in SHOWN)
                lines.append(f"| {seed} | {model} | {cells} |")
                print(lines[-1], json.dumps(metrics), flush=True)
    text = "\n".join(lines) + "\n"
    print(text)
    Path("benchmarks/results/seeds.md").write_text(f"Printed by `python benchmarks/seeds.py`.\n\n{text}")


if __name__ == "__main__":
    main()
