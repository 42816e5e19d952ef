"""Weights go to timm and transformers and come back bit for bit, and give there what they give here."""

import sys
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from dinov2.export import main
from dinov2.formats import (
    from_timm,
    from_transformers,
    to_reference,
    to_timm,
    to_transformers,
    transformers_config,
)
from dinov2.hub import BackboneCard, load_backbone, save_backbone
from dinov2.models.params import ViTParams, released_params
from dinov2.models.vit import VisionTransformer

TINY = ViTParams(
    patch_size=14,
    dim=48,
    depth=2,
    heads=3,
    ffn="mlp",
    num_registers=0,
    layerscale=1.0,
    drop_path=0.0,
    image_size_px=518,
    interpolate_offset=0.1,
    interpolate_antialias=False,
)
REGISTERS = {"num_registers": 4, "interpolate_offset": 0.0, "interpolate_antialias": True}
VARIANTS = {
    "mlp": TINY,
    "swiglu": TINY.model_copy(update={"ffn": "swiglu"}),
    "mlp_reg4": TINY.model_copy(update=REGISTERS),
    "swiglu_reg4": TINY.model_copy(update={"ffn": "swiglu", **REGISTERS}),
}


class _Anything(type):
    """A class whose every attribute is there and differs from every other."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return f"{cls.__name__}.{name}"


class _Stub(ModuleType):
    """What timm imports of torchvision: names only, for transforms of images, which are not used here."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Anything(name, (), {})


@pytest.fixture(scope="module")
def timm_vit() -> Iterator[ModuleType]:
    """`timm.models.vision_transformer`, without torchvision, whose wheel does not import beside torch's CPU build."""
    names = ["torchvision"]
    names += [f"torchvision.{part}" for part in ("transforms", "transforms.functional", "datasets", "ops", "ops.misc")]
    names += [f"torchvision.{part}" for part in ("models", "models.feature_extraction", "utils", "io")]
    for name in names:
        stub = _Stub(name)
        stub.__spec__, stub.__path__ = ModuleSpec(name, None), []
        sys.modules[name] = stub
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], child, stub)
    try:
        from timm.models import vision_transformer
    finally:
        for name in names:
            del sys.modules[name]
    yield vision_transformer


def make_vit(params: ViTParams) -> VisionTransformer:
    """A network whose every weight matters."""
    torch.manual_seed(0)
    model = VisionTransformer(params)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def make_timm(vit: ModuleType, params: ViTParams) -> Any:
    """timm's network of these params, as its `vit_*_patch14_dinov2` are built."""
    hidden = {"mlp": 4.0, "swiglu": 2 * ((int(4 * params.dim * 2 / 3) + 7) // 8 * 8) / params.dim}[params.ffn]
    swiglu = {"mlp_layer": vit.SwiGLUPacked, "act_layer": torch.nn.SiLU} if params.ffn == "swiglu" else {}
    registers = {"reg_tokens": params.num_registers, "no_embed_class": True} if params.num_registers else {}
    return vit.VisionTransformer(
        img_size=params.image_size_px, patch_size=params.patch_size, embed_dim=params.dim, depth=params.depth,
        num_heads=params.heads, init_values=1e-5, mlp_ratio=hidden, num_classes=0, dynamic_img_size=True,
        **swiglu, **registers,
    ).eval()  # fmt: skip


def save(model: VisionTransformer, folder: Path) -> Path:
    card = BackboneCard(
        architecture=model.params, image_size_px=model.params.image_size_px, mean=(0.5, 0.4, 0.3), std=(0.2, 0.2, 0.1),
        training={}, licence="none",
    )  # fmt: skip
    save_backbone(folder, model, card)
    return folder


def assert_same(state: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert set(state) == set(expected)
    for name, value in expected.items():
        assert torch.equal(state[name], value), name


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_timm_round_trip(variant: str, timm_vit: ModuleType) -> None:
    params = VARIANTS[variant]
    ours = make_vit(params)
    theirs = make_timm(timm_vit, params)
    there = to_timm(ours.state_dict())
    theirs.load_state_dict(there, strict=True)
    back = from_timm(theirs.state_dict(), params)
    assert_same(to_timm(back), there)

    kept = ours.state_dict() | {"mask_token": torch.zeros(1, params.dim)}
    if params.num_registers:  # CLS and its position are one there
        positions = kept["pos_embed"].clone()
        kept |= {"cls_token": kept["cls_token"] + positions[:, :1], "pos_embed": positions}
        positions[:, 0] = 0
    assert_same(back, kept)

    for size_px in (518, 224, 98) if params.num_registers else (518,):
        images = torch.randn(1, 3, size_px, size_px)
        tokens = theirs.forward_features(images)
        features = ours.features(images)
        expected = torch.cat([features.cls[:, None], features.registers, features.patches], dim=1)
        torch.testing.assert_close(tokens, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_transformers_round_trip_by_the_command(variant: str, tmp_path: Path) -> None:
    from transformers import AutoModel

    params = VARIANTS[variant]
    ours = make_vit(params)
    command = ["--backbone", str(save(ours, tmp_path / "ours")), "--to", "transformers", "--out"]
    assert main([*command, str(tmp_path / "theirs")]) == 0
    theirs, report = AutoModel.from_pretrained(tmp_path / "theirs", output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    theirs.eval()
    assert type(theirs).__name__ == ("Dinov2WithRegistersModel" if params.num_registers else "Dinov2Model")

    assert_same(to_reference(theirs.state_dict(), params), ours.state_dict())
    theirs.save_pretrained(tmp_path / "again")
    assert_same(from_transformers(load_file(tmp_path / "again/model.safetensors")), ours.state_dict())

    sizes = [(518, 518), (224, 224), (98, 98), (28, 56)] if params.num_registers else [(518, 518)]
    for size in sizes:
        images = torch.randn(1, 3, *size)
        tokens = theirs(images).last_hidden_state
        features = ours.features(images)
        expected = torch.cat([features.cls[:, None], features.registers, features.patches], dim=1)
        torch.testing.assert_close(tokens, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["vit_small", "vit_base_reg4", "vit_large", "vit_giant2", "vit_giant2_reg4"])
def test_names_and_shapes_at_full_size(name: str, timm_vit: ModuleType) -> None:
    from transformers import AutoConfig, AutoModel

    params = released_params(name)
    with torch.device("meta"):
        ours = VisionTransformer(params).state_dict()
        config: dict[str, Any] = transformers_config(params)
        theirs = AutoModel.from_config(AutoConfig.for_model(**config)).state_dict()
        timm_name = name.replace("giant2", "giant").replace("_reg4", "_patch14_reg4")
        timm_name = timm_name if "_reg4" in name else f"{timm_name}_patch14"
        timm_state = getattr(timm_vit, f"{timm_name}_dinov2")(num_classes=0).state_dict()
    shapes = {key: value.shape for key, value in ours.items()}
    assert {key: value.shape for key, value in to_reference(theirs, params).items()} == shapes
    assert {key: value.shape for key, value in to_reference(timm_state, params).items()} == shapes
    assert {key: value.shape for key, value in to_timm(ours).items()} == {k: v.shape for k, v in timm_state.items()}
    assert {key: v.shape for key, v in from_transformers(to_transformers(ours)).items()} == shapes


@torch.no_grad()
def test_resized_export_is_exact_at_its_size(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from transformers import AutoModel

    ours = make_vit(TINY)
    command = ["--backbone", str(save(ours, tmp_path / "ours")), "--to", "transformers"]
    assert main([*command, "--out", str(tmp_path / "theirs"), "--image-size-px", "224"]) == 0
    assert "equal for images of 224 px" in capsys.readouterr().err
    images = torch.randn(1, 3, 224, 224)
    tokens = AutoModel.from_pretrained(tmp_path / "theirs").eval()(images).last_hidden_state
    torch.testing.assert_close(tokens[:, 0], ours(images), rtol=1e-5, atol=1e-5)


def test_command_tells_mistakes_in_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = save(make_vit(TINY), tmp_path / "ours")
    command = ["--to", "timm", "--out"]
    for wrong, told in (
        (["--backbone", str(folder), *command, str(folder)], "exists"),
        (["--backbone", str(tmp_path / "none"), *command, str(tmp_path / "x")], "can't be read"),
        (["--backbone", str(folder), *command, str(tmp_path / "x"), "--image-size-px", "225"], "no multiple"),
    ):
        assert main(wrong) == 2
        assert told in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_released_weights_load_from_every_format(tmp_path: Path) -> None:
    params = released_params("vit_small_16_reg4")
    ours = make_vit(params)
    folder = save(ours, tmp_path / "ours")
    for to, out in (("reference", "a.pth"), ("timm", "b.safetensors"), ("transformers", "c")):
        assert main(["--backbone", str(folder), "--to", to, "--out", str(tmp_path / out)]) == 0
    images = torch.randn(1, 3, 64, 32)
    for file in ("a.pth", "b.safetensors", "c/model.safetensors"):
        model, card = load_backbone(tmp_path / file, "vit_small_16_reg4")
        assert card.architecture == params
        torch.testing.assert_close(model(images), ours(images))
