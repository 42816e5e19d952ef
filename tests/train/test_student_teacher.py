"""The whole objective: its options, and what must not change it. tests/test_golden.py holds the reference's numbers."""

import math
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from dinov2.models.params import HeadParams, ViTParams
from dinov2.train.params import LossParams
from dinov2.train.student_teacher import Batch, StudentTeacher

MODEL = ViTParams(
    patch_size=14,
    dim=16,
    depth=2,
    heads=2,
    ffn="mlp",
    num_registers=1,
    layerscale=1.0,
    drop_path=0.0,
    image_size_px=56,
    interpolate_offset=0.0,
    interpolate_antialias=True,
)
HEAD = HeadParams(num_prototypes=24, hidden_dim=16, bottleneck_dim=8, num_layers=2)
IBOT_HEAD = HEAD.model_copy(update={"num_prototypes": 40})
LOSS = LossParams(
    dino_weight=1.0,
    ibot_weight=1.0,
    koleo_weight=0.1,
    centering="sinkhorn",
    sinkhorn_iterations=3,
    center_momentum=0.9,
    student_temperature=0.1,
)
ALL = ["dino_local", "dino_global", "ibot", "koleo"]


def pair(
    *, ibot_head: HeadParams | None = IBOT_HEAD, group_size: int = 4, drop_path: float = 0.0, **loss: Any
) -> StudentTeacher:
    torch.manual_seed(0)
    model, loss_params = MODEL.model_copy(update={"drop_path": drop_path}), LOSS.model_copy(update=loss)
    nets = StudentTeacher(model, HEAD, ibot_head, loss_params, group_size=group_size, attention="sdpa")
    with torch.no_grad():
        for parameter in nets.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))  # and the teacher differs from the student
    return nets


def batch(*, num_local: int = 2, num_images: int = 4, num_masked: int = 3) -> Batch:
    generator = torch.Generator().manual_seed(1)
    masks = torch.zeros(2 * num_images, 16, dtype=torch.bool)
    masks[:num_masked, ::2] = True
    masks[:num_masked, 1] = True
    return Batch(
        torch.randn(2, num_images, 3, 56, 56, generator=generator),
        torch.randn(num_local, num_images, 3, 28, 28, generator=generator),
        masks,
        max_masked=0,
    )


def losses_of(nets: StudentTeacher, images: Batch, **options: Any) -> dict[str, Tensor]:
    """The terms, and their weighted `total`."""
    total, terms = nets.losses(images, *nets.targets([images], options.pop("temperature", 0.05)), **options)
    return {**terms, "total": total}


def gradients(nets: StudentTeacher, losses: dict[str, Tensor]) -> dict[str, Tensor | None]:
    nets.zero_grad()
    losses["total"].backward()
    return {name: parameter.grad for name, parameter in nets.named_parameters()}


@pytest.mark.parametrize("centering", ["sinkhorn", "softmax"])
@pytest.mark.parametrize("ibot_head", [IBOT_HEAD, None])
def test_all_terms_train_the_student_alone(centering: str, ibot_head: HeadParams | None) -> None:
    nets = pair(centering=centering, ibot_head=ibot_head)
    losses = losses_of(nets, batch())
    assert list(losses) == [*ALL, "total"]
    for name, gradient in gradients(nets, losses).items():
        assert (gradient is None) == name.startswith("teacher."), name
        assert gradient is None or (gradient.isfinite().all() and gradient.abs().sum() > 0), name


@pytest.mark.parametrize(
    ("weights", "left"),
    [
        ({"dino_weight": 0.0}, ["ibot", "koleo"]),
        ({"ibot_weight": 0.0}, ["dino_local", "dino_global", "koleo"]),
        ({"koleo_weight": 0.0}, ["dino_local", "dino_global", "ibot"]),
        ({"dino_weight": 0.0, "ibot_weight": 0.0}, ["koleo"]),
        ({"dino_weight": 0.0, "koleo_weight": 0.0}, ["ibot"]),
        ({"ibot_weight": 0.0, "koleo_weight": 0.0}, ["dino_local", "dino_global"]),
    ],
)
@pytest.mark.parametrize("ibot_head", [IBOT_HEAD, None])
def test_terms_of_weight_zero_are_left_out(
    weights: dict[str, Any], left: list[str], ibot_head: HeadParams | None
) -> None:
    nets = pair(ibot_head=ibot_head, **weights)
    losses = losses_of(nets, batch())
    assert list(losses) == [*left, "total"]
    gradient = gradients(nets, losses)["student.backbone.blocks.0.attn.qkv.weight"]
    assert gradient is not None
    assert gradient.abs().sum() > 0
    if weights.get("ibot_weight") != 0.0:  # the others do not depend on it
        full = losses_of(pair(ibot_head=ibot_head), batch())
        for name in left:
            torch.testing.assert_close(losses[name], full[name], rtol=1e-5, atol=1e-6)


def test_all_weights_zero_is_refused() -> None:
    with pytest.raises(ValidationError, match="all 0"):
        LossParams.model_validate(LOSS.model_dump() | {"dino_weight": 0.0, "ibot_weight": 0.0, "koleo_weight": 0.0})


def test_student_sees_whole_crops_without_the_patch_loss() -> None:
    nets = pair(ibot_weight=0.0)
    masked = losses_of(nets, batch())
    unmasked = losses_of(nets, batch(num_masked=0))
    assert masked == unmasked
    with_patches = losses_of(pair(), batch())
    assert with_patches["dino_global"] != masked["dino_global"]


def test_total_weighs_the_terms() -> None:
    nets = pair(dino_weight=2.0, ibot_weight=3.0, koleo_weight=0.5)
    losses = losses_of(nets, batch())
    wanted = 2 * (losses["dino_local"] + losses["dino_global"]) + 3 * losses["ibot"] + 0.5 * losses["koleo"]
    torch.testing.assert_close(losses["total"], wanted)


def test_few_crops_and_no_masks_still_train() -> None:
    losses = losses_of(pair(), batch(num_local=0, num_masked=0))
    assert list(losses) == ["dino_global", "ibot", "koleo", "total"]
    assert losses["ibot"].item() == 0


def test_uniform_student_is_at_the_chance_values() -> None:
    nets = pair()
    with torch.no_grad():
        for head in ("dino_head", "ibot_head"):
            nets.student.get_parameter(f"{head}.last_layer.weight_g").zero_()
    losses = losses_of(nets, batch(num_local=8))
    assert losses["dino_local"].item() == pytest.approx(16 / 18 * math.log(24), rel=1e-5)
    assert losses["dino_global"].item() == pytest.approx(2 / 18 * math.log(24), rel=1e-5)
    assert losses["ibot"].item() == pytest.approx(3 / 8 * math.log(40), rel=1e-5)  # 3 of 8 crops are masked


def test_koleo_is_the_mean_over_groups() -> None:
    images = batch(num_images=8)
    halves = [
        Batch(
            images.global_crops[:, part],
            images.local_crops[:, part],
            images.masks.view(2, 8, -1)[:, part].flatten(0, 1),
            max_masked=0,
        )
        for part in (slice(0, 4), slice(4, 8))
    ]
    whole = losses_of(pair(), images)
    parts = [losses_of(pair(), half) for half in halves]
    torch.testing.assert_close(whole["koleo"], (parts[0]["koleo"] + parts[1]["koleo"]) / 2, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(whole["ibot"] > 0, torch.tensor(True))


def test_stochastic_depth_depends_on_group_seeds_alone() -> None:
    nets = pair(drop_path=0.5, group_size=2)
    images = batch()
    torch.manual_seed(1)
    first = losses_of(nets, images, group_seeds=[3, 4])
    torch.manual_seed(2)
    again = losses_of(nets, images, group_seeds=[3, 4])
    other = losses_of(nets, images, group_seeds=[3, 5])
    assert first == again
    assert all(first[name] != other[name] for name in ALL)
    with pytest.raises(AssertionError, match="2 group_seeds"):
        losses_of(nets, images)


def test_teacher_follows_the_student() -> None:
    nets = pair()
    before = {name: parameter.clone() for name, parameter in nets.teacher.named_parameters()}
    nets.update_teacher(0.75)
    for name, parameter in nets.teacher.named_parameters():
        expected = 0.75 * before[name] + 0.25 * nets.student.get_parameter(name)
        torch.testing.assert_close(parameter, expected)


def test_teacher_stays_in_evaluation_mode() -> None:
    nets = pair(drop_path=0.5).train()
    assert nets.student.training
    assert not any(module.training for module in nets.teacher.modules())


def test_centers_are_state_and_move_once_a_step() -> None:
    nets = pair(centering="softmax")
    first = losses_of(nets, batch())
    centers = {name: value for name, value in nets.state_dict().items() if "center" in name}
    assert [tuple(value.shape) for value in centers.values()] == [(1, 24), (1, 40)]
    assert all(value.abs().sum() > 0 for value in centers.values())
    assert losses_of(nets, batch())["dino_local"] != first["dino_local"]


def test_init_weights_fills_a_pair_built_without_memory() -> None:
    with torch.device("meta"):
        nets = StudentTeacher(MODEL, HEAD, None, LOSS, group_size=4, attention="sdpa")
    nets = nets.to_empty(device="cpu")
    nets.init_weights()
    assert all(value.isfinite().all() for value in nets.state_dict().values())
    for name, parameter in nets.teacher.named_parameters():
        assert torch.equal(parameter, nets.student.get_parameter(name))
        assert not parameter.requires_grad


def test_bf16_autocast_is_near_fp32() -> None:
    exact = losses_of(pair(), batch(), temperature=0.1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = losses_of(pair(), batch(), temperature=0.1)
    for name in ALL:
        assert rounded[name].dtype == torch.float32
        assert rounded[name].item() == pytest.approx(exact[name].item(), rel=0.1, abs=0.05)


def test_parts_of_a_batch_have_its_gradient() -> None:
    images = batch(num_images=8, num_masked=11)
    whole = pair(drop_path=0.5)
    expected = gradients(whole, losses_of(whole, images, group_seeds=[3, 4]))
    nets = pair(drop_path=0.5)
    parts = images.parts(2)
    for part, targets, seed in zip(parts, nets.targets(parts, 0.05), (3, 4), strict=True):
        (nets.losses(part, targets, group_seeds=[seed])[0] / 2).backward()
    for name, parameter in nets.named_parameters():
        wanted = expected[name]
        assert (parameter.grad is None) == (wanted is None), name
        if parameter.grad is not None and wanted is not None:
            torch.testing.assert_close(parameter.grad, wanted, rtol=1e-4, atol=1e-6, msg=name)


def test_padding_to_a_fixed_number_of_patches_changes_nothing() -> None:
    nets = pair()
    bare, padded = batch(), batch()._replace(max_masked=60)
    assert_same(losses_of(nets, bare), losses_of(nets, padded))


def assert_same(left: dict[str, Tensor], right: dict[str, Tensor]) -> None:
    for name, value in left.items():
        torch.testing.assert_close(right[name], value, rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.parametrize(
    ("case", "images"),
    [
        ("identical", torch.rand(1, 1, 3, 56, 56).expand(2, 4, 3, 56, 56)),
        ("black", torch.zeros(2, 4, 3, 56, 56)),
        ("huge", 1e4 * torch.randn(2, 4, 3, 56, 56, generator=torch.Generator().manual_seed(0))),
    ],
)
def test_odd_images_give_finite_losses_and_gradients(case: str, images: Tensor) -> None:
    nets = pair()
    odd = batch()._replace(global_crops=images, local_crops=images[:, :, :, :28, :28])
    losses = losses_of(nets, odd)
    assert all(value.isfinite() for value in losses.values()), case
    for name, gradient in gradients(nets, losses).items():
        assert gradient is None or gradient.isfinite().all(), name


def test_single_image_trains_without_its_neighbours() -> None:
    nets = pair(group_size=1, koleo_weight=0.0)
    losses = losses_of(nets, batch(num_images=1, num_masked=1))
    assert all(gradient is None or gradient.isfinite().all() for gradient in gradients(nets, losses).values())


def test_huge_logits_give_finite_losses_and_gradients() -> None:
    nets = pair()
    with torch.no_grad():
        for network in (nets.student, nets.teacher):
            for head in ("dino_head", "ibot_head"):
                network.get_parameter(f"{head}.last_layer.weight_g").fill_(1e4)
    losses = losses_of(nets, batch(), temperature=0.04)
    assert all(value.isfinite() for value in losses.values())
    assert all(gradient is None or gradient.isfinite().all() for gradient in gradients(nets, losses).values())


def test_nan_in_an_image_leaves_the_centers_as_they_were() -> None:
    nets = pair(centering="softmax")
    losses_of(nets, batch())
    before = {name: value.clone() for name, value in nets.state_dict().items() if "center" in name}
    broken = batch()
    broken.global_crops[0, 1, 2, 3, 4] = torch.nan
    assert not losses_of(nets, broken)["total"].isfinite()
    assert all(torch.equal(nets.state_dict()[name], value) for name, value in before.items())
