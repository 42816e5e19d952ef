"""Backbones on disk: `backbone.safetensors` with the reference's state-dict names, and `backbone.json` beside it.

Released DINOv2 files (`*_pretrain.pth`) load as well, and ours load into the reference's code: always strictly, so that
no weight is left out or random.
"""

import pickle
from pathlib import Path

import torch
from pydantic import JsonValue, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from dinov2.models.params import ViTParams, released_params
from dinov2.models.vit import VisionTransformer
from dinov2.params import InputError, Params
from dinov2.records import write_json

WEIGHTS = "backbone.safetensors"
CARD = "backbone.json"

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class BackboneCard(Params):
    """What is needed to use a backbone, and where it comes from."""

    architecture: ViTParams
    image_size_px: int
    """Side of the images that it was last trained on."""
    mean: tuple[float, float, float]
    """Subtracted from RGB values in 0..1."""
    std: tuple[float, float, float]
    """What the difference is divided by."""
    training: dict[str, JsonValue]
    """How it was trained: params and data, as its stage records them."""
    licence: str
    """Terms of use of the weights."""


def save_backbone(folder: Path, model: VisionTransformer, card: BackboneCard) -> None:
    """Writes the weights (fp32) and the card into `folder`; equal weights give equal bytes."""
    assert card.architecture == model.params, "the card describes another architecture than the model's"
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: value.detach().float().cpu().contiguous() for name, value in model.state_dict().items()}
    save_file(weights, folder / WEIGHTS)
    write_json(folder / CARD, card.model_dump(mode="json"))


def load_backbone(path: Path, architecture: str | None = None) -> tuple[VisionTransformer, BackboneCard]:
    """A backbone in evaluation mode on the CPU, from one of ours or from a released file.

    Ours: the folder, or the safetensors file in it; `architecture` stays None. Released: the `.pth` file with its
    `architecture` (vit_small, vit_base_reg4, ...). Raises InputError if something is absent or does not fit.
    """
    if path.suffix == ".pth":
        return _load_released(path, architecture)
    if architecture is not None:
        raise InputError(
            f"{path} tells its architecture itself; leave out '{architecture}', or give a released .pth file"
        )
    folder = path.parent if path.suffix == ".safetensors" else path
    card = load_card(folder)
    return _build(card, _read_safetensors(folder / WEIGHTS), folder / WEIGHTS), card


def load_card(folder: Path) -> BackboneCard:
    """The card of the backbone in `folder`; raises InputError if it is absent or wrong."""
    try:
        return BackboneCard.model_validate_json((folder / CARD).read_bytes())
    except OSError as error:
        raise InputError(
            f"{folder / CARD} can't be read ({error.strerror}); give a folder that a training wrote"
        ) from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in first["loc"])
        raise InputError(f"{folder / CARD} is no card of a backbone ({key}: {first['msg']}); restore it") from error


def _load_released(path: Path, architecture: str | None) -> tuple[VisionTransformer, BackboneCard]:
    if architecture is None:
        raise InputError(f"{path} does not tell its architecture; name it, for example vit_small")
    params = released_params(architecture)
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise InputError(f"{path} can't be read ({error.strerror}); mend the path") from error
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise InputError(f"{path} is no file of released weights; download it again") from error
    if not isinstance(weights, dict) or not all(isinstance(value, Tensor) for value in weights.values()):
        raise InputError(
            f"{path} is no flat dictionary of weights; give a released backbone, not a training checkpoint"
        )
    card = BackboneCard(
        architecture=params,
        image_size_px=params.image_size_px,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        training={"source": path.name},
        licence="Apache-2.0",
    )
    return _build(card, weights, path), card


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except OSError as error:
        raise InputError(f"{path} can't be read ({error.strerror}); give a folder that a training wrote") from error
    except SafetensorError as error:
        raise InputError(f"{path} is damaged ({error}); restore it") from error


def _build(card: BackboneCard, weights: dict[str, Tensor], path: Path) -> VisionTransformer:
    with torch.device("meta"):
        model = VisionTransformer(card.architecture)
    try:
        model.load_state_dict(weights, strict=True, assign=True)
    except RuntimeError as error:
        details = " ".join(str(error).split())
        raise InputError(f"{path} does not fit its architecture; check the architecture's name. {details}") from error
    return model.eval()
