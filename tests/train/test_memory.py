"""Estimated memory against what autograd keeps and what checkpoints weigh."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dinov2.losses import prototypes
from dinov2.models import attention
from dinov2.models.layers import draw_subsets
from dinov2.models.params import HeadParams, ViTParams
from dinov2.models.vit import VisionTransformer
from dinov2.params import read_yaml, validate
from dinov2.train import memory
from dinov2.train.checkpoint import Checkpoints
from dinov2.train.flops import OURS, Counting
from dinov2.train.memory import activation_bytes, backbone_parameters, checkpoint_bytes, num_parameters
from dinov2.train.objective import build_network
from dinov2.train.optim import build_optimizer
from dinov2.train.params import Architecture, OptimParams
from dinov2.train.workload import Shape, Workload

TINY: Any = read_yaml(Path(__file__).parents[1] / "tiny.yaml")
HEAD = HeadParams(num_prototypes=8, hidden_dim=8, bottleneck_dim=8, num_layers=1)
NUM_IMAGES = 10


def architecture(**changes: Any) -> Architecture:
    model = {
        "patch_size": 4, "dim": 64, "depth": 4, "heads": 2, "ffn": "mlp", "num_registers": 0, "layerscale": 0.1,
        "drop_path": 0.0, "image_size_px": 32, "interpolate_offset": 0.0, "interpolate_antialias": False,
    }  # fmt: skip
    return Architecture(model=ViTParams(**{**model, **changes}), dino_head=HEAD, ibot_head=None)


def kept_bytes(model: ViTParams, width: int, work: Workload) -> int:
    """What autograd keeps of a forward beside weights, casts of weights, and images."""
    backbone = VisionTransformer(model).train()
    crops = [torch.randn(20, 3, 32, 32), torch.randn(30, 3, 16, 16)]
    shapes = [tuple(parameter.shape) for parameter in backbone.parameters()]
    weights = {*shapes, *(shape[::-1] for shape in shapes)}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.is_floating_point() and tuple(tensor.shape) not in weights and tensor.shape[-3:-2] != (3,):
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    generators = [torch.Generator().manual_seed(0)]
    sizes = [(shape.samples, shape.length) for shape in work.student]
    subsets = draw_subsets(sizes, NUM_IMAGES, model.depth, model.drop_path, generators) if model.drop_path else None
    rows = torch.arange(work.student_rows)
    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=width == 2),
    ):
        backbone.tokens(crops, [None, None], rows, subsets)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


@pytest.mark.parametrize("width", [2, 4])
@pytest.mark.parametrize("changes", [{}, {"drop_path": 0.4}, {"drop_path": 0.4, "ffn": "swiglu"}], ids=str)
def test_activations_are_what_autograd_keeps(
    changes: dict[str, Any], width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "LONGEST_EXPLICIT", 0)  # a fused kernel, as on a GPU
    networks = architecture(**changes)
    share = 1 - networks.model.drop_path
    student = [Shape(20, 65), Shape(30, 17)]
    kept = [Shape(int(20 * share), 65), Shape(int(30 * share), 17)]
    work = Workload(NUM_IMAGES, [], student, kept, masked_patches=100, teacher_cls=0, student_cls=0, spread_cls=0)
    estimate = activation_bytes(networks, work, width, OURS)
    assert estimate == pytest.approx(kept_bytes(networks.model, width, work), rel=0.02)


def test_recomputation_keeps_less_the_more_is_computed_again() -> None:
    work = Workload(10, [], [Shape(20, 65)], [Shape(12, 65)], 100, 20, 20, 20)
    kinds = [Counting("needed", "blocks", recompute) for recompute in ("none", "pointwise", "block")]
    none, pointwise, block = (activation_bytes(architecture(drop_path=0.4, depth=24), work, 2, kind) for kind in kinds)
    assert block < pointwise < none


def test_constants_are_the_losses_own() -> None:
    assert prototypes.BLOCK_ELEMENTS["cuda"] == memory.BLOCK_LOGITS


def test_checkpoint_weighs_what_is_planned(tmp_path: Path) -> None:
    params = validate(OptimParams, TINY["pretrain"]["optim"], where="optim")
    networks = architecture(dim=256, depth=2)
    pair = torch.nn.ModuleDict(
        {name: build_network(networks.model, networks.dino_head, None) for name in ("student", "teacher")}
    )
    student: Any = pair["student"]
    checkpoints = Checkpoints(tmp_path, fingerprint="f", num_kept=1)
    checkpoints.save(1, pair, {"": build_optimizer(student, params)}, {})
    checkpoints.wait()
    size = sum(path.stat().st_size for path in tmp_path.rglob("*.distcp"))
    planned = checkpoint_bytes(sum(parameter.numel() for parameter in student.parameters()))
    assert planned <= size <= 1.03 * planned  # each tensor has a header


@pytest.mark.parametrize("changes", [{}, {"ffn": "swiglu", "num_registers": 3, "dim": 72}])
@pytest.mark.parametrize("ibot_head", [None, HEAD.model_copy(update={"hidden_dim": 5, "num_layers": 4})])
def test_parameters_are_those_of_the_networks(changes: dict[str, Any], ibot_head: HeadParams | None) -> None:
    counted = architecture(**changes).model_copy(update={"ibot_head": ibot_head})
    network = build_network(counted.model, counted.dino_head, ibot_head)
    sizes = {name: sum(weight.numel() for weight in part.parameters()) for name, part in network.items()}
    assert num_parameters(counted) == sum(sizes.values())
    assert backbone_parameters(counted.model) == sizes["backbone"]
