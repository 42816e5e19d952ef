"""What a training leaves: backbones, all networks for the next training, and its summary's numbers."""

from collections.abc import Mapping
from pathlib import Path

from pydantic import JsonValue
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from dinov2.hub import IMAGENET_MEAN, IMAGENET_STD, BackboneCard, save_backbone
from dinov2.models.params import ViTParams
from dinov2.models.vit import VisionTransformer
from dinov2.params import InputError
from dinov2.train.curves import Row
from dinov2.train.params import Architecture

TRAINING = "training.safetensors"
LICENCE = "not stated: it is for the owner of the training images to say"
SHOWN = ("total", "dino_local", "dino_global", "ibot", "koleo", "effective_rank", "knn", "teacher_entropy", "lr")
BY_SCHEDULE = ("lr", "backbone_lr", "last_layer_lr", "weight_decay", "momentum", "teacher_temperature")


def write_backbone(
    folder: Path, weights: Mapping[str, Tensor], model: ViTParams, *, image_size_px: int, training: dict[str, JsonValue]
) -> None:
    """A backbone as the hub writes it, from its state dict."""
    network = VisionTransformer(model)
    network.load_state_dict(dict(weights), strict=True)
    card = BackboneCard(
        architecture=model, image_size_px=image_size_px, mean=IMAGENET_MEAN, std=IMAGENET_STD,
        training=training, licence=LICENCE,
    )  # fmt: skip
    save_backbone(folder, network, card)


def write_training(path: Path, state: Mapping[str, Tensor], architecture: Architecture) -> None:
    """`student.*` and `teacher.*` of a StudentTeacher, fp32, with the architecture in the file's metadata."""
    chosen = {
        name: value.float().contiguous() for name, value in state.items() if name.startswith(("student.", "teacher."))
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(chosen, path, metadata={"architecture": architecture.model_dump_json()})


def read_training(path: Path) -> tuple[dict[str, Tensor], Architecture]:
    """What `write_training` wrote; raises InputError if the file is absent or damaged."""
    try:
        with safe_open(path, framework="pt") as stream:
            architecture = Architecture.model_validate_json((stream.metadata() or {})["architecture"])
            names = stream.keys()
            return {name: stream.get_tensor(name) for name in names}, architecture
    except OSError as error:
        raise InputError(f"{path} can't be read ({error}); run the stage that makes it (dvc repro)") from error
    except (SafetensorError, KeyError, ValueError) as error:
        raise InputError(f"{path} is no file of a training ({error}); make it again (dvc repro)") from error


def part(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The entries below `prefix`, without it."""
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def rows_of(rows: list[Row], learner: str) -> list[Row]:
    """The curves of one learner among several, under the names that a single one has; shared values stay."""
    prefix = f"{learner}/"
    return [
        {name.removeprefix(prefix): value for name, value in row.items() if "/" not in name or name.startswith(prefix)}
        for row in rows
    ]


def final_metrics(rows: list[Row]) -> dict[str, float]:
    """The last losses and what the monitor saw last; nothing that a clock or a schedule decides."""
    last = rows[-1]
    return {name: float(last[name]) for name in (*SHOWN, "prototypes_used") if name in last and name not in BY_SCHEDULE}
