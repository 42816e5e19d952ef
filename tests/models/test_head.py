"""The projection head."""

import torch

from dinov2.models.head import DINOHead
from dinov2.models.params import HeadParams

PARAMS = HeadParams(num_prototypes=20, hidden_dim=16, bottleneck_dim=8, num_layers=3)


def test_logits_are_scaled_cosines() -> None:
    head = DINOHead(12, PARAMS)
    with torch.no_grad():
        head.last_layer.weight_g.copy_(torch.linspace(1, 3, 20)[:, None])
        head.last_layer.weight_v.mul_(7)  # only its direction counts
    x = torch.randn(5, 12)
    cosines = torch.cosine_similarity(head.mlp(x)[:, None], head.last_layer.weight_v[None], dim=-1)
    torch.testing.assert_close(head(x), cosines * torch.linspace(1, 3, 20))


def test_logits_are_fp32_under_autocast() -> None:
    head = DINOHead(12, PARAMS)
    x = torch.randn(5, 12)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = head(x)
        bottleneck = torch.nn.functional.normalize(head.mlp(x).float(), dim=-1)
    assert logits.dtype == torch.float32
    v = head.last_layer.weight_v
    torch.testing.assert_close(logits, bottleneck @ (v / v.norm(dim=1, keepdim=True)).T)


def test_parameter_count_is_the_references() -> None:
    with torch.device("meta"):
        head = DINOHead(1536, HeadParams(num_prototypes=131_072, hidden_dim=2048, bottleneck_dim=384, num_layers=3))
    assert round(sum(p.numel() for p in head.parameters()) / 1e6, 1) == 58.6


def test_fresh_prototypes_have_factor_one() -> None:
    head = DINOHead(12, PARAMS)
    assert head.last_layer.weight_g.eq(1).all()
    assert head.last_layer.weight_v.abs().max() <= 8**-0.5
    assert head.get_parameter("mlp.0.bias").eq(0).all()
