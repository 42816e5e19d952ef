"""Backbones go to disk and come back; wrong files are named."""

import json
from pathlib import Path

import pytest
import torch

from dinov2.hub import BackboneCard, load_backbone, save_backbone
from dinov2.models.params import ViTParams, released_params
from dinov2.models.vit import VisionTransformer
from dinov2.params import InputError

PARAMS = ViTParams(
    patch_size=14,
    dim=16,
    depth=2,
    heads=2,
    ffn="mlp",
    num_registers=1,
    layerscale=1e-5,
    drop_path=0.1,
    image_size_px=56,
    interpolate_offset=0.0,
    interpolate_antialias=True,
)
CARD = BackboneCard(
    architecture=PARAMS,
    image_size_px=56,
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
    training={"steps": 3},
    licence="Apache-2.0",
)


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Path, VisionTransformer]:
    torch.manual_seed(0)
    model = VisionTransformer(PARAMS)
    save_backbone(tmp_path, model, CARD)
    return tmp_path, model


def test_backbone_comes_back_from_folder_and_from_file(saved: tuple[Path, VisionTransformer]) -> None:
    folder, model = saved
    images = torch.randn(2, 3, 56, 56)
    for path in (folder, folder / "backbone.safetensors"):
        loaded, card = load_backbone(path)
        assert card == CARD
        assert not loaded.training
        assert torch.equal(loaded(images), model.eval()(images))
        assert all(parameter.requires_grad for parameter in loaded.parameters())


def test_equal_weights_give_equal_bytes(saved: tuple[Path, VisionTransformer], tmp_path: Path) -> None:
    folder, model = saved
    save_backbone(tmp_path / "again", model, CARD)
    for name in ("backbone.safetensors", "backbone.json"):
        assert (folder / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


@pytest.mark.parametrize("name", ["vit_small", "vit_small_reg4"])
def test_released_file_loads_strictly(name: str, tmp_path: Path) -> None:
    with torch.device("meta"):
        source = VisionTransformer(released_params(name)).eval()
    torch.manual_seed(0)
    source.load_state_dict({k: 0.1 * torch.rand(v.shape) for k, v in source.state_dict().items()}, assign=True)
    path = tmp_path / "released.pth"
    torch.save(source.state_dict(), path)
    model, card = load_backbone(path, name)
    assert card.image_size_px == 518
    images = torch.randn(1, 3, 28, 28)
    assert torch.equal(model(images), source(images))


def test_wrong_files_are_named(saved: tuple[Path, VisionTransformer], tmp_path: Path) -> None:
    folder, model = saved
    with pytest.raises(InputError, match="can't be read"):
        load_backbone(tmp_path / "nowhere")
    with pytest.raises(InputError, match="leave out"):
        load_backbone(folder, "vit_small")

    released = tmp_path / "released.pth"
    torch.save(model.state_dict(), released)
    with pytest.raises(InputError, match="name it"):
        load_backbone(released)
    with pytest.raises(InputError, match="does not fit"):
        load_backbone(released, "vit_small")
    torch.save({"teacher": model.state_dict()}, released)
    with pytest.raises(InputError, match="no flat dictionary"):
        load_backbone(released, "vit_small")
    released.write_bytes(b"not weights")
    with pytest.raises(InputError, match="no file of released weights"):
        load_backbone(released, "vit_small")


def test_card_must_fit_the_weights(saved: tuple[Path, VisionTransformer]) -> None:
    folder, _ = saved
    card = json.loads((folder / "backbone.json").read_text())
    (folder / "backbone.json").write_text(json.dumps(card | {"architecture": card["architecture"] | {"dim": 32}}))
    with pytest.raises(InputError, match="does not fit its architecture"):
        load_backbone(folder)
    (folder / "backbone.json").write_text(json.dumps({key: card[key] for key in card if key != "mean"}))
    with pytest.raises(InputError, match="mean"):
        load_backbone(folder)
    (folder / "backbone.json").write_text(json.dumps(card))
    (folder / "backbone.safetensors").write_bytes(b"torn")
    with pytest.raises(InputError, match="damaged"):
        load_backbone(folder)
