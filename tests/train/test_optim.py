"""Groups, rates and clipping; tests/test_golden.py holds the reference's multipliers."""

from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict

from dinov2.models.params import HeadParams, ViTParams
from dinov2.train.objective import build_network
from dinov2.train.optim import LossScale, build_optimizer, clip, parameter_groups, set_rates
from dinov2.train.params import OptimParams
from dinov2.train.schedules import StepValues

MODEL = ViTParams(
    patch_size=14,
    dim=16,
    depth=2,
    heads=2,
    ffn="mlp",
    num_registers=0,
    layerscale=1.0,
    drop_path=0.0,
    image_size_px=28,
    interpolate_offset=0.1,
    interpolate_antialias=False,
)
HEAD = HeadParams(num_prototypes=8, hidden_dim=8, bottleneck_dim=4, num_layers=2)
OPTIM = OptimParams(
    base_lr=1e-3, beta1=0.9, beta2=0.999, layerwise_decay=0.5, patch_embed_lr_multiplier=0.2, clip_norm=1.0
)


def rates(**changes: float) -> StepValues:
    """One learning rate for all but what `changes` says."""
    values = {"lr": 0.1, "backbone_lr": 0.1, "last_layer_lr": 0.1, "weight_decay": 0.5}
    return StepValues(**{**values, **changes}, momentum=0.9, teacher_temperature=0.05)


def test_every_parameter_is_in_one_group() -> None:
    network = build_network(MODEL, HEAD, HEAD)
    members = [id(parameter) for group in parameter_groups(network, OPTIM) for parameter in group["params"]]
    assert sorted(members) == sorted(id(parameter) for parameter in network.parameters())


def test_rates_reach_the_parameters() -> None:
    network = build_network(MODEL, HEAD, None)
    optimizer = build_optimizer(network, OPTIM)
    before = {name: parameter.detach().clone() for name, parameter in network.named_parameters()}
    for parameter in network.parameters():
        parameter.grad = torch.ones_like(parameter)  # AdamW's first step is then lr * (1 + wd * weight)
    set_rates(optimizer, rates(last_layer_lr=0.0))
    optimizer.step()

    def moved(name: str, lr: float, weight_decay: float) -> None:
        expected = before[name] * (1 - lr * weight_decay) - lr
        torch.testing.assert_close(network.get_parameter(name), expected, rtol=1e-4, atol=1e-6)

    moved("backbone.norm.weight", 0.1, 0.0)
    moved("backbone.blocks.1.mlp.fc1.weight", 0.05, 0.5)
    moved("backbone.blocks.0.ls1.gamma", 0.025, 0.0)
    moved("backbone.pos_embed", 0.0125, 0.5)
    moved("backbone.patch_embed.proj.weight", 0.0025, 0.5)
    moved("dino_head.mlp.0.bias", 0.1, 0.0)
    assert torch.equal(network.get_parameter("dino_head.last_layer.weight_v"), before["dino_head.last_layer.weight_v"])


def test_state_is_whole_where_a_parameter_gets_no_gradient() -> None:
    def stepped(state: dict[str, Any] | None) -> tuple[nn.ModuleDict, torch.optim.Optimizer]:
        torch.manual_seed(0)
        network = build_network(MODEL, HEAD, HEAD)
        optimizer = build_optimizer(network, OPTIM)
        if state is not None:
            set_optimizer_state_dict(network, optimizer, state)
        set_rates(optimizer, rates())
        network["dino_head"](torch.ones(2, 16)).sum().backward()
        optimizer.step()
        return network, optimizer

    network, optimizer = stepped(None)
    _, resumed = stepped(get_optimizer_state_dict(network, optimizer))
    steps = {values["step"].item() for values in resumed.state.values()}
    assert steps == {0.0, 2.0}  # the backbone never stepped, the head went on


def test_each_module_is_clipped_by_itself() -> None:
    modules = nn.ModuleDict({"loud": nn.Linear(2, 2, bias=False), "quiet": nn.Linear(2, 2, bias=False)})
    modules["loud"].weight.grad = torch.full((2, 2), 50.0)
    modules["quiet"].weight.grad = torch.full((2, 2), 0.25)
    norms = clip(modules, 1.0)
    assert [norms[name].item() for name in ("loud", "quiet")] == [100.0, 0.5]
    assert modules["loud"].weight.grad.norm().item() == pytest.approx(1.0, rel=1e-5)
    assert modules["quiet"].weight.grad.eq(0.25).all()


def test_norm_of_a_broken_gradient_shows_it() -> None:
    modules = nn.ModuleDict({"net": nn.Linear(2, 2, bias=False)})
    modules["net"].weight.grad = torch.tensor([[1.0, torch.inf], [0.0, 0.0]])
    assert not clip(modules, 1.0)["net"].isfinite()


def test_frozen_backbone_stays_while_heads_learn() -> None:
    network = build_network(MODEL, HEAD, None)
    optimizer = build_optimizer(network, OPTIM)
    before = {name: parameter.detach().clone() for name, parameter in network.named_parameters()}
    for parameter in network.parameters():
        parameter.grad = torch.ones_like(parameter)
    set_rates(optimizer, rates(backbone_lr=0.0))
    optimizer.step()
    for name, parameter in network.named_parameters():
        assert torch.equal(parameter, before[name]) == name.startswith("backbone."), name


def test_clip_of_scaled_gradients_gives_those_of_the_loss() -> None:
    modules = nn.ModuleDict({"loud": nn.Linear(2, 2, bias=False), "quiet": nn.Linear(2, 2, bias=False)})
    modules["loud"].weight.grad = torch.full((2, 2), 50.0 * 1024)
    modules["quiet"].weight.grad = torch.full((2, 2), 0.25 * 1024)
    norms = clip(modules, 1.0, scale=torch.tensor(1024.0))
    assert [norms[name].item() for name in ("loud", "quiet")] == [100.0, 0.5]
    assert modules["loud"].weight.grad.norm().item() == pytest.approx(1.0, rel=1e-5)
    assert modules["quiet"].weight.grad.eq(0.25).all()


def test_loss_scale_falls_at_once_and_rises_slowly() -> None:
    scale = LossScale(torch.device("cpu"))
    bad, good = torch.tensor(1.0), torch.tensor(0.0)
    scale.update(bad)
    scale.update(bad)
    assert scale.value.item() == 2.0**14
    for _ in range(LossScale.GROWTH_STEPS - 1):
        scale.update(good)
    assert scale.value.item() == 2.0**14
    restored = LossScale(torch.device("cpu"))
    restored.load(scale.state())
    for each in (scale, restored):
        each.update(good)
        assert each.value.item() == 2.0**15
