"""The stage on a folder of tiny images: what it counts, what it writes, what it refuses."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dinov2.eval.params import BaselineParams, KnnParams, LinearParams, PcaParams
from dinov2.hub import BackboneCard, save_backbone
from dinov2.models.params import ViTParams
from dinov2.models.vit import VisionTransformer
from dinov2.params import InputError
from tasks.evaluate import EvaluateParams, run

PARAMS = EvaluateParams(
    folder="",
    seed=0,
    batch_size=4,
    num_resamples=100,
    knn=KnnParams(num_neighbors=[1, 50], reference=50, temperature=0.07),
    linear=LinearParams(learning_rates=[0.1, 1.0], momentum=0.9, num_steps=20, batch_size=8, validation_share=0.25),
    baselines=BaselineParams(image_size_px=32, histogram_bins=4, pixels_px=8),
    pca=PcaParams(num_images=2, scale=2, tile_px=16),
)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """seeds and evaluation of two labels, red and blue, that a colour histogram tells apart."""
    generator = np.random.Generator(np.random.PCG64(0))
    for kind, num in (("seeds", 6), ("evaluation", 3)):
        for channel, label in ((0, "red"), (2, "blue")):
            folder = tmp_path / kind / label
            folder.mkdir(parents=True)
            for number in range(num):
                pixels = generator.integers(0, 60, (40, 50, 3), dtype=np.uint8)
                pixels[..., channel] += 180
                Image.fromarray(pixels).save(folder / f"{number}.png")
    return tmp_path


@pytest.fixture
def backbone(tmp_path: Path) -> Path:
    """A small network on disk."""
    architecture = ViTParams(
        patch_size=8, dim=16, depth=1, heads=2, ffn="mlp", num_registers=0, layerscale=1.0, drop_path=0.0,
        image_size_px=32, interpolate_offset=0.1, interpolate_antialias=False,
    )  # fmt: skip
    torch.manual_seed(1)
    card = BackboneCard(
        architecture=architecture,
        image_size_px=32,
        mean=(0.5, 0.5, 0.5),
        std=(0.2, 0.2, 0.2),
        training={},
        licence="none",
    )
    save_backbone(tmp_path / "backbone", VisionTransformer(architecture), card)
    return tmp_path / "backbone"


def evaluate(images: Path, backbone: Path, model: str) -> tuple[dict[str, float], dict[str, Any], Path]:
    out = images / "out" / model
    out.mkdir(parents=True)
    seeds, evaluation = images / "seeds", images / "evaluation"
    summary = run(PARAMS, model=model, backbone=backbone, seeds=seeds, evaluation=evaluation, out=out)
    return summary.metrics, json.loads((out / "predictions.json").read_text()), out


def test_network_is_judged_and_its_hits_are_its_accuracy(images: Path, backbone: Path) -> None:
    metrics, predictions, out = evaluate(images, backbone, "pretrain")
    assert metrics["num_train"] == 12
    assert metrics["knn_top1_low"] <= metrics["knn_top1"] <= metrics["knn_top1_high"]
    assert "knn_top1_k12" in metrics  # 50 neighbours were asked for, there are 12
    hits = np.mean([a == b for a, b in zip(predictions["methods"]["knn"], predictions["labels"], strict=True)])
    assert metrics["knn_top1"] == pytest.approx(hits)
    with Image.open(out / "figures" / "pca.png") as picture:
        assert picture.height == 2 * 16


def test_random_network_shares_the_architecture_and_not_the_weights(images: Path, backbone: Path) -> None:
    (backbone / "backbone.safetensors").unlink()
    state = torch.random.get_rng_state()
    metrics, _, _ = evaluate(images, backbone, "random")
    assert metrics["num_parameters"] > 0
    assert torch.equal(torch.random.get_rng_state(), state)


def test_baselines_need_no_backbone_and_the_histogram_tells_colours(images: Path) -> None:
    metrics, predictions, _ = evaluate(images, images / "nowhere", "baselines")
    assert metrics["histogram_knn_top1"] == 1.0
    assert sorted(predictions["methods"]) == ["histogram_knn", "pixels_knn"]


def test_broken_and_unknown_images_are_counted(images: Path) -> None:
    (images / "evaluation" / "red" / "torn.png").write_bytes(b"not an image")
    (images / "evaluation" / "green").mkdir()
    (images / "evaluation" / "red" / "0.png").rename(images / "evaluation" / "green" / "0.png")
    out = images / "out"
    out.mkdir()
    summary = run(
        PARAMS, model="baselines", backbone=images, seeds=images / "seeds", evaluation=images / "evaluation", out=out
    )
    assert summary.dropped == {"does_not_decode": 1, "label_not_among_seeds": 1}
    assert (summary.num_in, summary.num_kept) == (7, 5)


def test_no_common_label_is_refused_with_what_to_do(images: Path) -> None:
    (images / "evaluation" / "red").rename(images / "evaluation" / "crimson")
    (images / "evaluation" / "blue").rename(images / "evaluation" / "navy")
    seeds, evaluation = images / "seeds", images / "evaluation"
    with pytest.raises(InputError, match="name its folders as those of the seeds"):
        run(PARAMS, model="baselines", backbone=images, seeds=seeds, evaluation=evaluation, out=images)


def test_one_of_several_evaluation_sets_is_judged_on(images: Path) -> None:
    whole, sets = images / "evaluation", images / "sets"
    (sets / "others/green").mkdir(parents=True)
    whole.rename(sets / "colours")
    told = {"model": "baselines", "backbone": images, "seeds": images / "seeds", "evaluation": sets, "out": images}
    assert run(PARAMS.model_copy(update={"folder": "colours"}), **told).num_kept == 6
    with pytest.raises(InputError, match=r"sets/colors is not a folder; mend evaluate\.folder"):
        run(PARAMS.model_copy(update={"folder": "colors"}), **told)
