"""Backbones in MLflow's model registry: a version a training, an alias for the best, and the way back.

A version holds backbone.safetensors and backbone.json as the hub writes them, and a signature: no code is pickled. The
alias `champion` is of the version that met its gates in evaluate with the best k-NN, of those judged in the same way.

Run:   python -m tasks.registry models:/dinov2-pretrain@champion --out champion
       then e.g. python -m dinov2.export --backbone champion --to transformers --out exported
"""

import argparse
import shutil
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dinov2.params import InputError, load_section
from tasks.server import Server, TrackingParams, open_client
from tasks.tracked import CARD, WEIGHTS

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

    from dinov2.hub import BackboneCard
    from dinov2.models.vit import VisionTransformer

CHAMPION = "champion"
FOLDER = "backbone"  # below the run's artifacts
BEST_BY = "knn_top1"


def register(server: Server, model: str, run: str, folder: Path, sha256: str) -> None:
    """Make the backbone in `folder` a version of `model`, which `run` trained; nothing where it is one already."""
    from mlflow.exceptions import MlflowException

    client, name = server.client, server.model(model)
    if any(version.run_id == run and version.tags.get("sha256") == sha256 for version in _versions(server, name)):
        return
    try:
        client.create_registered_model(name, description=_about(name))
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    _upload(server, run, folder)
    source = f"{client.get_run(run).info.artifact_uri}/{FOLDER}"
    client.create_model_version(name, source, run_id=run, tags={"sha256": sha256})


def _about(name: str) -> str:
    return f"`python -m tasks.registry models:/{name}@{CHAMPION} --out FOLDER` fetches it; dinov2.hub opens the folder."


def _upload(server: Server, run: str, folder: Path) -> None:
    with tempfile.TemporaryDirectory() as made:
        path = Path(made) / "MLmodel"
        path.write_text(_model_file(folder, run))
        for file in (folder / WEIGHTS, folder / CARD, path):
            server.client.log_artifact(run, str(file), FOLDER)


def _model_file(folder: Path, run: str) -> str:
    """MLflow's description of a model: what goes in and comes out, and who opens it."""
    import numpy as np
    from mlflow.models import Model, ModelSignature
    from mlflow.types import Schema, TensorSpec

    from dinov2.hub import load_card

    card = load_card(folder)
    size, dim = card.image_size_px, card.architecture.dim
    images = TensorSpec(np.dtype(np.float32), (-1, 3, size, size), "images")
    cls = TensorSpec(np.dtype(np.float32), (-1, dim), "cls")
    patches = TensorSpec(np.dtype(np.float32), (-1, card.architecture.grid**2, dim), "patches")
    signature = ModelSignature(inputs=Schema([images]), outputs=Schema([cls, patches]))
    about = Model(artifact_path=FOLDER, run_id=run, signature=signature)
    about.add_flavor("dinov2", weights=WEIGHTS, card=CARD, loader="dinov2.hub.load_backbone")
    return about.to_yaml()


def judge(
    server: Server, model: str, judged: Mapping[str, Any], metrics: Mapping[str, float], *, has_met_gates: bool
) -> None:
    """Note at the versions of `model` with these weights how evaluate found them, and choose the champion anew.

    Names that nothing is registered under (an untrained network, a baseline) are left alone.
    """
    client, name = server.client, server.model(model)
    versions = _versions(server, name)
    found = [version for version in versions if version.tags.get("sha256") == judged["sha256"]]
    if not found or BEST_BY not in metrics:
        return
    notes = {
        BEST_BY: repr(metrics[BEST_BY]), "judged_by": judged["judge"], "gates": "met" if has_met_gates else "missed",
    }  # fmt: skip
    for version in found:
        for key, value in notes.items():
            client.set_model_version_tag(name, version.version, key, value)
        version.tags.update(notes)
        for key, value in metrics.items():
            if key.endswith("_top1") and version.run_id is not None:  # beside the training's own curves
                client.log_metric(version.run_id, f"evaluate/{key}", value, timestamp=judged["time_ms"], step=0)
    rivals = [each for each in versions if each.tags.get("judged_by") == judged["judge"]]
    able = [each for each in rivals if each.tags.get("gates") == "met"]
    if able:
        best = max(able, key=lambda each: (float(each.tags[BEST_BY]), -int(each.version)))
        client.set_registered_model_alias(name, CHAMPION, str(best.version))
    elif client.get_registered_model(name).aliases.get(CHAMPION) is not None:
        client.delete_registered_model_alias(name, CHAMPION)


def _versions(server: Server, name: str) -> "list[ModelVersion]":
    found = list(server.client.search_model_versions(f"name = '{name}'"))
    return sorted(found, key=lambda version: int(version.version))


def fetch(params: TrackingParams, uri: str, out: Path) -> None:
    """Copy the backbone that `uri` (models:/<name>@<alias> or models:/<name>/<version>) names into the folder `out`.

    Raises InputError if `out` exists or there is no such model.
    """
    from mlflow.artifacts import download_artifacts
    from mlflow.exceptions import MlflowException

    if out.exists():
        raise InputError(f"{out} exists; remove it or give another --out")
    open_client(params)
    try:
        with tempfile.TemporaryDirectory() as made:
            there = params.absolute_uri()
            found = download_artifacts(artifact_uri=uri, dst_path=made, tracking_uri=there, registry_uri=there)
            shutil.copytree(found, out)
    except MlflowException as error:
        reason = str(error).splitlines()[0]
        do = "see MLflow's page `Models` for what there is"
        raise InputError(f"{uri} can't be fetched from {params.uri} ({reason}); {do}") from error


def open_backbone(params: TrackingParams, uri: str) -> "tuple[VisionTransformer, BackboneCard]":
    """The network that `uri` names, in evaluation mode on the CPU, and its card. Raises InputError."""
    from dinov2.hub import load_backbone

    with tempfile.TemporaryDirectory() as made:
        fetch(params, uri, Path(made) / FOLDER)
        return load_backbone(Path(made) / FOLDER)


def main(arguments: list[str]) -> int:
    """The command; a person's mistake is one sentence and exit code 2."""
    parser = argparse.ArgumentParser(prog="python -m tasks.registry", description="fetch a registered backbone")
    parser.add_argument("uri", help="models:/<name>@<alias> or models:/<name>/<version>")
    parser.add_argument("--out", type=Path, required=True, help="folder to make")
    given = parser.parse_args(arguments)
    try:
        fetch(load_section(Path("params.yaml"), "tracking", TrackingParams), given.uri, given.out)
    except InputError as error:
        sys.stderr.write(f"registry: {error}\n")
        return 2
    sys.stdout.write(f"{given.out} holds {given.uri}; dinov2.hub.load_backbone opens it\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
