"""Backbones go to disk and come back; wrong files are named."""

import json
from pathlib import Path

import pytest
import torch

from dinov2.hub import BackboneCard, load_backbone, load_initial_backbone, resize_grid, save_backbone
from dinov2.models.head import DINOHead
from dinov2.models.params import HeadParams, ViTParams, released_params
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
    torch.save({"model": model.state_dict(), "step": 3}, released)
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


def test_teacher_checkpoint_of_the_references_training_loads(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = VisionTransformer(released_params("vit_small_16")).eval()
    head = DINOHead(384, HeadParams(num_prototypes=8, hidden_dim=8, bottleneck_dim=8, num_layers=3))
    names = {name: f"backbone.{name}" for name in model.state_dict()}
    for name in names:
        if name.startswith("blocks."):  # four chunks of three blocks, which keep their numbers
            names[name] = f"backbone.blocks.{int(name.split('.')[1]) // 3}.{name.removeprefix('blocks.')}"
    teacher = {names[name]: value for name, value in model.state_dict().items()}
    teacher |= {f"dino_head.{name}": value for name, value in head.state_dict().items()}
    torch.save({"teacher": teacher}, tmp_path / "teacher_checkpoint.pth")
    loaded, _ = load_backbone(tmp_path / "teacher_checkpoint.pth", "vit_small_16")
    images = torch.randn(1, 3, 32, 32)
    assert torch.equal(loaded(images), model(images))


@pytest.mark.parametrize(("offset", "antialias"), [(0.0, True), (0.0, False), (0.1, False)])
def test_resized_backbone_gives_the_same_at_its_new_size(offset: float, antialias: bool) -> None:
    torch.manual_seed(0)
    params = PARAMS.model_copy(update={"interpolate_offset": offset, "interpolate_antialias": antialias})
    model = VisionTransformer(params).eval()
    state = resize_grid(model.state_dict(), params, 84)
    resized = VisionTransformer(params.model_copy(update={"image_size_px": 84})).eval()
    resized.load_state_dict(state, strict=True)
    images = torch.randn(2, 3, 84, 84)
    assert torch.equal(resized.features(images).patches, model.features(images).patches)
    small = images[..., :56, :56]  # at the old size the positions are no longer the old ones
    assert not torch.allclose(resized.features(small).patches, model.features(small).patches, atol=1e-4)


def test_grid_that_cannot_be_resized_is_named() -> None:
    state = VisionTransformer(PARAMS).state_dict()
    for size_px in (85, 0, -14):
        with pytest.raises(InputError, match=rf"{size_px} px is no multiple of the patch of 14 px"):
            resize_grid(state, PARAMS, size_px)
    with pytest.raises(InputError, match=r"\(1, 16, 16\), no square grid"):
        resize_grid({**state, "pos_embed": state["pos_embed"][:, 1:]}, PARAMS, 84)
    with pytest.raises(InputError, match="absent"):
        resize_grid({"cls_token": state["cls_token"]}, PARAMS, 84)


def test_training_starts_from_a_backbone_with_resized_positions(saved: tuple[Path, VisionTransformer]) -> None:
    folder, model = saved
    target = PARAMS.model_copy(update={"image_size_px": 84, "drop_path": 0.4, "layerscale": 1.0})
    state = load_initial_backbone(folder, None, target)
    start = VisionTransformer(target).eval()
    start.load_state_dict(state, strict=True)
    images = torch.randn(1, 3, 84, 84)
    assert torch.equal(start.features(images).patches, model.eval().features(images).patches)


def test_training_starts_from_a_released_file_of_any_grid(tmp_path: Path) -> None:
    torch.manual_seed(0)
    released = VisionTransformer(released_params("vit_small").model_copy(update={"image_size_px": 224}))
    torch.save(released.state_dict(), tmp_path / "vits14.pth")
    target = released_params("vit_small").model_copy(update={"image_size_px": 98})
    state = load_initial_backbone(tmp_path / "vits14.pth", "vit_small", target)
    assert state["pos_embed"].shape == (1, 50, 384)
    with pytest.raises(InputError, match=r"pos_embed is \(1, 257, 384\), not \(1, 1370, 384\)"):
        load_backbone(tmp_path / "vits14.pth", "vit_small")  # not silently


@pytest.mark.parametrize(
    ("field", "value", "here"),
    [("dim", 32, 16), ("depth", 3, 2), ("heads", 4, 2), ("ffn", "swiglu", "mlp"), ("num_registers", 4, 1)],
)
def test_training_of_another_network_is_refused(
    saved: tuple[Path, VisionTransformer], field: str, value: object, here: object
) -> None:
    target = PARAMS.model_copy(update={field: value})
    with pytest.raises(InputError, match=rf"has {field} {here}, but the network that starts from it has {value}"):
        load_initial_backbone(saved[0], None, target)


def test_training_at_another_patch_size_is_refused(saved: tuple[Path, VisionTransformer]) -> None:
    target = PARAMS.model_copy(update={"patch_size": 16, "image_size_px": 64})
    with pytest.raises(InputError, match="has patch_size 14, but the network that starts from it has 16"):
        load_initial_backbone(saved[0], None, target)


def test_backbone_without_layerscale_is_refused(tmp_path: Path) -> None:
    state = VisionTransformer(released_params("vit_small_16")).state_dict()
    torch.save({name: value for name, value in state.items() if ".ls" not in name}, tmp_path / "old.pth")
    with pytest.raises(InputError, match=r"blocks.0.ls1.gamma is missing.*and 21 more"):
        load_backbone(tmp_path / "old.pth", "vit_small_16")
    with pytest.raises(InputError, match=r"blocks.0.ls1.gamma is missing.*and 21 more"):
        load_initial_backbone(tmp_path / "old.pth", "vit_small_16", released_params("vit_small_16"))
