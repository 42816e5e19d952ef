"""Backbones on disk: `backbone.safetensors` with the reference's state-dict names, and `backbone.json` beside it.

Released DINOv2 files (`*_pretrain.pth`) load as well, also as timm and transformers name their weights, and so does the
backbone in a teacher checkpoint of the reference's training: always strictly, so that no weight is left out or random.
"""

import math
import pickle
from collections.abc import Mapping
from pathlib import Path

import torch
from pydantic import JsonValue, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from dinov2.formats import to_reference
from dinov2.models.params import ViTParams, released_params
from dinov2.models.vit import VisionTransformer, resize_positions
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

    Ours: the folder, or the safetensors file in it; `architecture` stays None. Released: the `.pth` or `.safetensors`
    file with its `architecture` (vit_small, vit_base_reg4, ...). Raises InputError if something is absent or does not
    fit, the grid of positions included: `resize_grid` is the way to have another.
    """
    weights, card = _read(path, architecture)
    _check_fit(weights, card.architecture, path)
    with torch.device("meta"):
        model = VisionTransformer(card.architecture)
    model.load_state_dict(weights, strict=True, assign=True)
    return model.eval(), card


def load_initial_backbone(path: Path, architecture: str | None, target: ViTParams) -> dict[str, Tensor]:
    """The state dict (fp32) that a training of `target` starts from, its positions resized to the target's grid.

    `path` and `architecture` are load_backbone's, but the file's grid may be any. How the target interpolates, its
    LayerScale's initial value and its stochastic depth are its own. Raises InputError if what is trained is another
    network, with both values, or if the file does not hold all of it.
    """
    weights, card = _read(path, architecture)
    for field in ("patch_size", "dim", "depth", "heads", "ffn", "num_registers"):
        there, here = getattr(card.architecture, field), getattr(target, field)
        if there != here:
            raise InputError(
                f"{path} has {field} {there}, but the network that starts from it has {here}; "
                "change the params or start from another backbone"
            )
    weights = resize_grid(weights, card.architecture, target.image_size_px)
    _check_fit(weights, target, path)
    return weights


def resize_grid(state: Mapping[str, Tensor], params: ViTParams, size_px: int) -> dict[str, Tensor]:
    """`state` with positions for images of `size_px`, interpolated as a network of `params` does at that size.

    So its outputs at that size stay the same to the bit. Raises InputError if `size_px` is no multiple of the patch, or
    if there are no positions of a square grid.
    """
    if size_px <= 0 or size_px % params.patch_size:
        raise InputError(f"{size_px} px is no multiple of the patch of {params.patch_size} px; give another size")
    positions = state.get("pos_embed")
    places = 0 if positions is None or positions.ndim != 3 else positions.shape[1] - 1
    if positions is None or places == 0 or math.isqrt(places) ** 2 != places:
        shape = "absent" if positions is None else f"of shape {tuple(positions.shape)}"
        raise InputError(f"the position embedding (pos_embed) is {shape}, no square grid; give a backbone of DINOv2")
    side = size_px // params.patch_size
    resized = resize_positions(
        positions, side, side, offset=params.interpolate_offset, antialias=params.interpolate_antialias
    )
    return {**state, "pos_embed": resized.contiguous()}


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


def _read(path: Path, architecture: str | None) -> tuple[dict[str, Tensor], BackboneCard]:
    """Weights under the reference's names, and what is known of them; nothing is compared yet."""
    is_file = path.suffix in (".pth", ".bin", ".safetensors")
    if is_file and not (path.suffix == ".safetensors" and (path.parent / CARD).exists()):
        return _read_released(path, architecture)
    if architecture is not None:
        raise InputError(
            f"{path} tells its architecture itself; leave out '{architecture}', or give a released .pth file"
        )
    folder = path.parent if is_file else path
    card = load_card(folder)
    return _read_safetensors(folder / WEIGHTS), card


def _read_released(path: Path, architecture: str | None) -> tuple[dict[str, Tensor], BackboneCard]:
    if architecture is None:
        raise InputError(f"{path} does not tell its architecture; name it, for example vit_small")
    params = released_params(architecture)
    weights = _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickle(path)
    card = BackboneCard(
        architecture=params,
        image_size_px=params.image_size_px,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        training={"source": path.name},
        licence="Apache-2.0",
    )
    return {name: value.float() for name, value in to_reference(weights, params).items()}, card


def _read_pickle(path: Path) -> dict[str, Tensor]:
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise InputError(f"{path} can't be read ({error.strerror}); mend the path") from error
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise InputError(f"{path} is no file of released weights; download it again") from error
    if isinstance(weights, dict) and set(weights) == {"teacher"}:  # the reference's teacher_checkpoint.pth
        weights = weights["teacher"]
    if not isinstance(weights, dict) or not all(isinstance(value, Tensor) for value in weights.values()):
        raise InputError(
            f"{path} is no flat dictionary of weights; give a released backbone or a teacher_checkpoint.pth"
        )
    return weights


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except OSError as error:
        raise InputError(f"{path} can't be read ({error.strerror}); give a folder that a training wrote") from error
    except SafetensorError as error:
        raise InputError(f"{path} is damaged ({error}); restore it") from error


def _check_fit(weights: Mapping[str, Tensor], params: ViTParams, path: Path) -> None:
    """Raises InputError unless the names and shapes are those of a network of `params`."""
    with torch.device("meta"):
        expected = {name: tuple(value.shape) for name, value in VisionTransformer(params).state_dict().items()}
    faults = [f"{name} is missing" for name in expected if name not in weights]
    faults += [f"{name} is unknown" for name in weights if name not in expected]
    faults += [
        f"{name} is {tuple(value.shape)}, not {expected[name]}"
        for name, value in weights.items()
        if name in expected and tuple(value.shape) != expected[name]
    ]
    if faults:
        more = f" and {len(faults) - 3} more" if len(faults) > 3 else ""
        details = "; ".join(faults[:3]) + more
        raise InputError(f"{path} does not fit its architecture ({details}); check the architecture's name")
