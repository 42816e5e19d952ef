"""The backbone: real sizes and names, packed forwards, masks, positions, stochastic depth."""

from typing import cast

import pytest
import torch

from dinov2.models.layers import Block, draw_subsets
from dinov2.models.params import ARCHITECTURES, ViTParams, released_params
from dinov2.models.recompute import Recompute
from dinov2.models.vit import VisionTransformer, resize_positions
from dinov2.params import InputError

TINY = ViTParams(
    patch_size=14,
    dim=32,
    depth=2,
    heads=2,
    ffn="swiglu",
    num_registers=2,
    layerscale=1.0,
    drop_path=0.0,
    image_size_px=56,
    interpolate_offset=0.0,
    interpolate_antialias=True,
)


def tiny(**changes: object) -> VisionTransformer:
    """A network whose every weight matters: large positions, random CLS, registers and mask token."""
    torch.manual_seed(0)
    model = VisionTransformer(TINY.model_copy(update=changes))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize(
    ("name", "at_224", "at_518"),
    [
        ("vit_small", 21_629_184, 22_056_576),
        ("vit_base", 85_725_696, 86_580_480),
        ("vit_large", 303_228_928, 304_368_640),
        ("vit_giant2", 1_134_771_200, 1_136_480_768),
    ],
)
def test_released_architectures_have_the_reference_parameter_counts(name: str, at_224: int, at_518: int) -> None:
    for image_size_px, expected in ((224, at_224), (518, at_518)):
        with torch.device("meta"):
            model = VisionTransformer(released_params(name).model_copy(update={"image_size_px": image_size_px}))
        assert sum(parameter.numel() for parameter in model.parameters()) == expected


def test_large_swiglu_has_the_reference_parameter_count() -> None:
    with torch.device("meta"):
        params = released_params("vit_large").model_copy(update={"ffn": "swiglu", "image_size_px": 224})
        assert sum(p.numel() for p in VisionTransformer(params).parameters()) == 303_655_168


def test_released_names_are_the_references() -> None:
    block = {"norm1.weight", "norm1.bias", "attn.qkv.weight", "attn.qkv.bias", "attn.proj.weight", "attn.proj.bias"}
    block |= {"ls1.gamma", "ls2.gamma", "norm2.weight", "norm2.bias"}
    ffn = {"mlp": {"mlp.fc1", "mlp.fc2"}, "swiglu": {"mlp.w12", "mlp.w3"}}
    outside = {"cls_token", "pos_embed", "mask_token", "register_tokens", "norm.weight", "norm.bias"}
    outside |= {"patch_embed.proj.weight", "patch_embed.proj.bias"}
    for name, size in ARCHITECTURES.items():
        with torch.device("meta"):
            model = VisionTransformer(released_params(f"{name}_reg4"))
        names = block | {f"{layer}.{kind}" for layer in ffn[size.ffn] for kind in ("weight", "bias")}
        expected = outside | {f"blocks.{i}.{part}" for i in range(size.depth) for part in names}
        assert set(model.state_dict()) == expected
        assert model.register_tokens.shape == (1, 4, size.dim)


def test_unknown_architecture_is_named() -> None:
    with pytest.raises(InputError, match=r"vit_huge.*vit_giant2"):
        released_params("vit_huge")


def test_packed_forward_equals_separate_forwards() -> None:
    model = tiny().eval()
    large, small = torch.randn(2, 3, 56, 56), torch.randn(4, 3, 28, 28)
    masks = torch.rand(2, 16) < 0.5
    packed = model.tokens([large, small], [masks, None], torch.arange(2 * 19 + 4 * 7))
    separate = [model.features(large, masks), *(model.features(image[None]) for image in small)]
    tokens = torch.cat([torch.cat([f.cls[:, None], f.registers, f.patches], dim=1).flatten(0, 1) for f in separate])
    torch.testing.assert_close(packed, tokens, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("drop_path", [0.0, 0.5])
def test_tokens_that_are_asked_for_do_not_depend_on_the_others(drop_path: float) -> None:
    model = tiny(drop_path=drop_path).train()
    crops, shapes = [torch.randn(4, 3, 56, 56), torch.randn(4, 3, 28, 28)], [(4, 19), (4, 7)]
    subsets = draw_subsets(shapes, 2, 2, drop_path, [torch.Generator().manual_seed(0)]) if drop_path else None
    chosen = torch.tensor([0, 19, 21, 5, 76, 83, 90, 5])
    gradients = []
    for rows, places in ((torch.arange(4 * 19 + 4 * 7), chosen), (chosen, torch.arange(len(chosen)))):
        tokens = model.tokens(crops, [None, None], rows, subsets)[places]
        of_weights = torch.autograd.grad(tokens.square().sum(), list(model.parameters()), allow_unused=True)
        gradients.append((tokens, of_weights))
    (all_tokens, of_all), (few, of_few) = gradients
    torch.testing.assert_close(few, all_tokens, rtol=1e-5, atol=1e-5)
    for (name, _), left, right in zip(model.named_parameters(), of_few, of_all, strict=True):
        assert (left is None) == (right is None) == (name == "mask_token")
        if left is not None:
            torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize("recompute", ["pointwise", "block"])
def test_recomputed_activations_change_no_gradient(recompute: Recompute) -> None:
    gradients = []
    for mode in ("none", recompute):
        model = tiny().train()
        model.recompute = mode
        torch.manual_seed(1)
        tokens = model.tokens([torch.randn(2, 3, 56, 56)], [None], torch.arange(38))
        gradients.append(torch.autograd.grad(tokens.square().sum(), list(model.parameters()), allow_unused=True))
    for left, right in zip(*gradients, strict=True):
        assert (left is None) == (right is None)
        if left is not None and right is not None:
            assert torch.equal(left, right)


def test_recompute_saves_memory_in_its_order() -> None:
    def saved_bytes(recompute: Recompute) -> int:
        model = tiny().train()
        model.recompute = recompute
        sizes: dict[int, int] = {}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            sizes[tensor.data_ptr()] = tensor.nbytes
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            model.tokens([torch.randn(2, 3, 56, 56)], [None], torch.arange(38))
        return sum(sizes.values())

    assert saved_bytes("block") < saved_bytes("none")


def test_masked_patches_do_not_reach_the_output() -> None:
    model = tiny().eval()
    images = torch.randn(1, 3, 56, 56)
    masks = torch.zeros(1, 16, dtype=torch.bool)
    masks[0, 5] = True  # row 1, column 1
    changed = images.clone()
    changed[..., 14:28, 14:28] += 1
    torch.testing.assert_close(model.features(images, masks), model.features(changed, masks))
    assert not torch.allclose(model(images), model(changed))


def test_wide_images_keep_rows_and_columns_apart() -> None:
    model = tiny().eval()
    images = torch.randn(1, 3, 28, 84)
    assert model.features(images).patches.shape == (1, 12, 32)
    assert not torch.allclose(model(images), model(images.transpose(2, 3)))
    with pytest.raises(AssertionError, match="no multiple"):
        model(torch.randn(1, 3, 28, 80))


def test_positions_stay_at_their_place_when_resized() -> None:
    ramp = torch.arange(16.0).view(4, 4) // 4  # the row's number
    positions = torch.cat([torch.zeros(1), ramp.flatten()]).view(1, 17, 1)
    for offset, antialias in ((0.0, True), (0.1, False)):
        wide = resize_positions(positions, 4, 8, offset=offset, antialias=antialias)[0, 1:].view(4, 8)
        torch.testing.assert_close(wide, torch.arange(4.0)[:, None].expand(4, 8), rtol=0, atol=0.15)
    assert resize_positions(positions, 4, 4, offset=0.1, antialias=False) is positions


def test_positions_of_tall_and_wide_images_are_each_others_transpose() -> None:
    positions = torch.randn(1, 17, 8)
    for offset, antialias in ((0.0, True), (0.0, False), (0.1, False)):
        mirrored = positions[:, 1:].unflatten(1, (4, 4)).transpose(1, 2).flatten(1, 2)
        wide = resize_positions(positions, 2, 4, offset=offset, antialias=antialias)
        tall = resize_positions(
            torch.cat([positions[:, :1], mirrored], dim=1), 4, 2, offset=offset, antialias=antialias
        )
        turned = tall[:, 1:].unflatten(1, (4, 2)).transpose(1, 2).flatten(1, 2)
        torch.testing.assert_close(wide[:, 1:], turned)
        assert torch.equal(wide[:, :1], positions[:, :1])
        model = tiny(interpolate_offset=offset, interpolate_antialias=antialias).eval()
        assert model.features(torch.randn(1, 3, 28, 56)).patches.shape == (1, 8, 32)


def test_last_intermediate_layer_is_the_output() -> None:
    model = tiny().eval()
    images = torch.randn(2, 3, 56, 56)
    first, last = model.intermediate(images, 2, norm=True)
    torch.testing.assert_close(last, model.features(images))
    assert not torch.allclose(first.cls, last.cls)


def test_subset_sizes_are_the_references() -> None:
    for drop_path, samples, kept in ((0.4, 64, 38), (0.4, 256, 153), (0.4, 24, 14), (0.3, 128, 89), (0.9, 4, 1)):
        subsets = draw_subsets([(samples, 1)], 1, 1, drop_path, [torch.Generator().manual_seed(0)])
        assert subsets.shapes == [(kept, 1)]
        assert subsets.scale.unique().item() == pytest.approx(samples / kept)


def test_subsets_of_a_group_do_not_depend_on_its_neighbours() -> None:
    def of_seeds(seeds: list[int]) -> torch.Tensor:
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        subsets = draw_subsets([(2 * 2 * len(seeds), 3)], 2 * len(seeds), 5, 0.5, generators)
        return subsets.rows[..., ::3] // 3  # sample numbers, crop * images + image

    both, alone = of_seeds([7, 8]), of_seeds([8])
    crop, image = both[..., 2:] // 4, both[..., 2:] % 4
    assert (image >= 2).all()  # the second group's images
    assert torch.equal(crop * 2 + image - 2, alone)


def test_stochastic_depth_equals_the_formula() -> None:
    model = tiny(drop_path=0.5, depth=1, ffn="mlp").train()
    images, small = torch.randn(4, 3, 56, 56), torch.randn(2, 3, 28, 28)
    shapes = [(4, 19), (2, 7)]
    subsets = draw_subsets(shapes, 2, 1, 0.5, [torch.Generator().manual_seed(3)])
    cls_rows = torch.cat([torch.arange(4) * 19, 4 * 19 + torch.arange(2) * 7])
    packed = model.tokens([images, small], [None, None], cls_rows, subsets).split([4, 2])

    block = cast(Block, model.blocks[0])
    for number, (crops, (samples, length), offset) in enumerate(zip((images, small), shapes, (0, 4 * 19), strict=True)):
        kept = [
            {
                int(row - offset) // length
                for row in subsets.rows[0, branch]
                if offset <= row < offset + samples * length
            }
            for branch in (0, 1)
        ]
        assert [len(k) for k in kept] == [samples // 2] * 2
        for sample in range(samples):
            x = model._embed(crops[sample : sample + 1], None)[0]
            if sample in kept[0]:
                x = x + 2 * block.ls1(block.attn(block.norm1(x), [(1, length)]))
            if sample in kept[1]:
                x = x + 2 * block.ls2(block.mlp(block.norm2(x)))
            torch.testing.assert_close(packed[number][sample], model.norm(x)[0], rtol=1e-5, atol=1e-5)


def test_xformers_on_a_cpu_is_refused() -> None:
    model = VisionTransformer(TINY, attention="xformers")
    with pytest.raises(InputError, match=r"xformers.*GPU"):
        model(torch.randn(1, 3, 56, 56))


def test_init_weights_leaves_nothing_unset() -> None:
    with torch.device("meta"):
        model = VisionTransformer(TINY)
    model = model.to_empty(device="cpu")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(torch.nan)
    model.init_weights()
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    assert model.get_parameter("blocks.1.mlp.w3.weight").std().item() == pytest.approx(0.02, rel=0.1)
    assert model.pos_embed.std().item() == pytest.approx(0.02, rel=0.2)
    assert model.cls_token.abs().max() < 1e-5
