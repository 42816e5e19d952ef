"""Judge one model on held-out images: k-NN and linear probe on frozen features, and a picture of its patch features.

In:    --backbone   folder with backbone.safetensors and backbone.json; `--model random` takes its architecture and
                    gives it fresh weights, `--model baselines` ignores it: colour histograms and raw pixels
       --seeds      training images, a folder a label
       --evaluation test images with the same labels, in the params' `folder` below it
Out:   metrics.json, predictions.json {ids, labels, methods: {method: predicted labels}}, figures/pca.png
Run:   python -m tasks.evaluate --model pretrain --backbone data/pretrain --seeds inputs/demo/seeds \
           --evaluation inputs/demo/evaluation --out data/evaluate/pretrain
Cost:  one forward of every image; the probe is seconds
"""

import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

from pydantic import Field

from dinov2.eval.params import BaselineParams, KnnParams, LinearParams, PcaParams
from dinov2.params import InputError, Params
from dinov2.records import Summary, write_json
from tasks.stage import main

if TYPE_CHECKING:
    from torch import Tensor

    from dinov2.eval.features import ImageSet
    from dinov2.hub import BackboneCard
    from dinov2.models.vit import VisionTransformer

VERSION = 3
BASELINES = "baselines"
RANDOM = "random"
log = logging.getLogger(__name__)


class EvaluateParams(Params):
    """How every model is judged; the same for all of them."""

    folder: str
    """Where below the evaluation folder the test images lie, a folder a label: with several dedup.evaluation_sets, that
    of the one whose labels are those of the seeds; empty: the evaluation folder itself."""
    seed: Annotated[int, Field(ge=0)]
    """Of the random network's weights, the probe's split and batches, and the resampling for intervals."""
    batch_size: Annotated[int, Field(gt=0)]
    """Images in a forward pass."""
    num_resamples: Annotated[int, Field(gt=0)]
    """Resamples of the test images for a 95 % interval."""
    knn: KnnParams
    linear: LinearParams
    baselines: BaselineParams
    pca: PcaParams


class Data(NamedTuple):
    """The labelled images that a model is judged with."""

    train: "ImageSet"
    test: "ImageSet"
    classes: list[str]
    """Names of the labels, sorted."""
    train_labels: "Tensor"
    test_labels: "Tensor"
    dropped: dict[str, int]
    """Test images left out, by reason."""


def run(params: EvaluateParams, *, model: str, backbone: Path, seeds: Path, evaluation: Path, out: Path) -> Summary:
    """Features of seeds and evaluation images, then every judge in turn."""
    data = _read(seeds, evaluation / params.folder)
    if model == BASELINES:
        scores, metrics = _judge_baselines(params, data)
    else:
        scores, metrics = _judge(params, model, backbone, data, out)
    metrics |= {"num_train": len(data.train.names), "num_test": len(data.test.names), "num_classes": len(data.classes)}
    methods = {name: [data.classes[best] for best in values.argmax(dim=1).tolist()] for name, values in scores.items()}
    predictions = {"ids": data.test.names, "labels": data.test.labels, "methods": methods}
    write_json(out / "predictions.json", predictions)
    told = ", ".join(f"{key} {value:.1%}" for key, value in sorted(metrics.items()) if key.endswith("_top1"))
    log.info("%s: %s", model, told)
    kept = len(data.test.names)
    return Summary(num_in=kept + sum(data.dropped.values()), num_kept=kept, dropped=data.dropped, metrics=metrics)


def _read(seeds: Path, evaluation: Path) -> Data:
    # imported in the job, not in the submitting process
    from dinov2.data.sources import FolderSource
    from dinov2.eval.features import number_labels, readable_images, without_labels

    if not evaluation.is_dir():
        raise InputError(f"{evaluation} is not a folder; mend evaluate.folder, or inputs.evaluation")
    train, test = readable_images(FolderSource(seeds)), readable_images(FolderSource(evaluation))
    if not train.names:
        raise InputError(f"{seeds} holds no readable labelled image; put images in it, a folder a label")
    classes = sorted(set(train.labels))
    known, num_unknown = without_labels(test, set(classes))
    if not known.names:
        raise InputError(
            f"{evaluation} holds no readable image with a label of {seeds} ({', '.join(classes[:3])}, ...); "
            "name its folders as those of the seeds"
        )
    reasons = {"does_not_decode": test.num_undecodable, "label_not_among_seeds": num_unknown}
    dropped = {reason: number for reason, number in reasons.items() if number}
    return Data(
        train, known, classes, number_labels(train.labels, classes), number_labels(known.labels, classes), dropped
    )


def _judge(
    params: EvaluateParams, model: str, backbone: Path, data: Data, out: Path
) -> tuple[dict[str, "Tensor"], dict[str, float]]:
    """k-NN on either token and linear probe of a network, its picture, and numbers that describe it.

    The mean patch token is judged beside the paper's class token for the random network's sake: with LayerScale at its
    start, that network's class token hardly depends on the image, which would make it too weak an opponent.
    """
    import torch

    from dinov2.eval.features import extract
    from dinov2.eval.linear import linear_probe
    from dinov2.hub import load_backbone, load_card
    from dinov2.metrics import effective_rank
    from dinov2.models.vit import VisionTransformer

    if model == RANDOM:
        card = load_card(backbone)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(params.seed)
            network = VisionTransformer(card.architecture)
    else:
        network, card = load_backbone(backbone)
    train, test = (extract(network, images, card, batch_size=params.batch_size) for images in (data.train, data.test))
    probe = linear_probe(
        train, data.train_labels, test, num_classes=len(data.classes), params=params.linear, seed=params.seed
    )
    nearest, metrics = _judge_knn(params, data, train.cls, test.cls, "knn")
    by_patches, patch_metrics = _judge_knn(params, data, train.mean_patch, test.mean_patch, "patch_knn")
    metrics |= patch_metrics
    metrics |= _measure("linear", probe.scores, data.test_labels, params)
    metrics |= {
        "linear_learning_rate": probe.learning_rate,
        "linear_uses_patches": float(probe.uses_patches),
        "linear_validation_top1": probe.validation_top1,
        "effective_rank": effective_rank(test.cls),
        "num_parameters": float(sum(parameter.numel() for parameter in network.parameters())),
        "image_size_px": float(card.image_size_px),
    }
    _draw(params, network, card, data, out)
    return {"knn": nearest, "patch_knn": by_patches, "linear": probe.scores}, metrics


def _draw(params: EvaluateParams, network: "VisionTransformer", card: "BackboneCard", data: Data, out: Path) -> None:
    import torch

    from dinov2.eval.features import chosen, crops
    from dinov2.eval.visualize import pca_picture, spread

    shown = chosen(data.test, spread(data.test.labels, params.pca.num_images))
    images = torch.stack(list(crops(shown, card.image_size_px * params.pca.scale)))
    picture = pca_picture(network, images, card, tile_px=params.pca.tile_px)
    (out / "figures").mkdir(parents=True, exist_ok=True)
    picture.save(out / "figures" / "pca.png")


def _judge_baselines(params: EvaluateParams, data: Data) -> tuple[dict[str, "Tensor"], dict[str, float]]:
    """k-NN on colour histograms and on raw pixels."""
    from dinov2.eval.baselines import colour_histograms, pixel_vectors

    size, bins, side = params.baselines.image_size_px, params.baselines.histogram_bins, params.baselines.pixels_px
    train, test = (colour_histograms(images, size_px=size, bins=bins) for images in (data.train, data.test))
    by_colour, metrics = _judge_knn(params, data, train, test, "histogram_knn")
    train, test = (pixel_vectors(images, size_px=size, side_px=side) for images in (data.train, data.test))
    by_pixel, pixel_metrics = _judge_knn(params, data, train, test, "pixels_knn")
    return {"histogram_knn": by_colour, "pixels_knn": by_pixel}, metrics | pixel_metrics


def _judge_knn(
    params: EvaluateParams, data: Data, train: "Tensor", test: "Tensor", name: str
) -> tuple["Tensor", dict[str, float]]:
    """Scores at the reference number of neighbours, and accuracies at every one."""
    from dinov2.eval.knn import knn_scores, limited
    from dinov2.metrics import accuracy

    scores = knn_scores(train, data.train_labels, test, num_classes=len(data.classes), params=params.knn)
    metrics = {f"{name}_top1_k{num}": accuracy(value, data.test_labels, 1) for num, value in scores.items()}
    reference = scores[limited(params.knn.reference, len(train))]
    return reference, metrics | _measure(name, reference, data.test_labels, params)


def _measure(name: str, scores: "Tensor", labels: "Tensor", params: EvaluateParams) -> dict[str, float]:
    from dinov2.metrics import accuracy, bootstrap_interval, top_hits

    hits = top_hits(scores, labels, 1).numpy()
    low, high = bootstrap_interval(hits, num_resamples=params.num_resamples, seed=params.seed)
    return {
        f"{name}_top1": accuracy(scores, labels, 1),
        f"{name}_top1_low": low,
        f"{name}_top1_high": high,
        f"{name}_top5": accuracy(scores, labels, 5),
    }


if __name__ == "__main__":
    sys.exit(main(run))
