"""The reference's architectures by name: counts and names of their parameters, at both patch sizes and both MLPs."""

import pytest
import torch

from dinov2.models.params import ARCHITECTURES, released_params
from dinov2.models.vit import VisionTransformer
from dinov2.params import InputError


def build(name: str, *, image_size_px: int | None = None) -> VisionTransformer:
    """The network without memory for its weights."""
    params = released_params(name)
    if image_size_px is not None:
        params = params.model_copy(update={"image_size_px": image_size_px})
    with torch.device("meta"):
        return VisionTransformer(params)


@pytest.mark.parametrize(
    ("name", "at_224"),
    [  # counted in the reference's networks of the same arguments
        ("vit_small_swiglu", 21_635_328),
        ("vit_base_swiglu", 85_737_984),
        ("vit_large_swiglu", 303_655_168),
        ("vit_giant2_mlp", 1_134_689_280),
        ("vit_small_16", 21_675_264),
        ("vit_base_16", 85_817_856),
        ("vit_large_16", 303_351_808),
        ("vit_giant2_16", 1_134_955_520),
        ("vit_small_swiglu_16", 21_681_408),
        ("vit_large_swiglu_16", 303_778_048),
        ("vit_giant2_mlp_16", 1_134_873_600),
        ("vit_large_16_reg4", 303_351_808 + 4 * 1024),
    ],
)
def test_unreleased_architectures_have_the_reference_parameter_counts(name: str, at_224: int) -> None:
    assert released_params(name).image_size_px == 224
    assert sum(parameter.numel() for parameter in build(name).parameters()) == at_224


def test_large_swiglu_at_518_has_the_reference_parameter_count() -> None:
    model = build("vit_large_swiglu", image_size_px=518)
    assert sum(parameter.numel() for parameter in model.parameters()) == 304_794_880


def test_names_and_shapes_follow_patch_size_and_ffn() -> None:
    for base, size in ARCHITECTURES.items():
        mlp, swiglu = build(f"{base}_mlp_16").state_dict(), build(f"{base}_swiglu_16").state_dict()
        assert {name.replace("w12", "fc1").replace("w3", "fc2") for name in swiglu} == set(mlp)
        assert "blocks.0.mlp.w12.weight" in swiglu
        assert mlp["patch_embed.proj.weight"].shape == (size.dim, 3, 16, 16)
        assert mlp["pos_embed"].shape == (1, 1 + 14 * 14, size.dim)
        assert "register_tokens" not in mlp


def test_released_ffn_may_be_said() -> None:
    assert released_params("vit_giant2_swiglu") == released_params("vit_giant2")
    assert released_params("vit_small_mlp_reg4") == released_params("vit_small_reg4")
    assert released_params("vit_small_reg4").image_size_px == 518


@pytest.mark.parametrize("name", ["vit_huge", "vit_small_reg8", "vit_small_16_swiglu", "vit_small_", "xvit_small", ""])
def test_wrong_name_is_told_what_there_is(name: str) -> None:
    with pytest.raises(InputError, match=rf"'{name}'.*vit_small.*_swiglu.*_16.*_reg4"):
        released_params(name)
