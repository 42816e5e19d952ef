"""The projection head: an MLP to a unit-length bottleneck, and its cosines with prototypes, each scaled by a factor.

State-dict names are the reference's (`mlp.N.*`, `last_layer.weight_g`, `last_layer.weight_v`).
"""

from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from dinov2.models.params import HeadParams


class Prototypes(nn.Module):
    """A linear layer without bias whose rows are weight_g * weight_v / |weight_v| (arXiv 1602.07868)."""

    def __init__(self, in_dim: int, num_prototypes: int) -> None:
        super().__init__()
        self.weight_g = nn.Parameter(torch.empty(num_prototypes, 1))
        self.weight_v = nn.Parameter(torch.empty(num_prototypes, in_dim))

    def init_weights(self) -> None:
        """Factors 1; directions by the default of torch's linear layers, which the reference keeps."""
        nn.init.ones_(self.weight_g)
        nn.init.kaiming_uniform_(self.weight_v, a=5**0.5)

    def forward(self, x: Float[Tensor, "n d"]) -> Float[Tensor, "n k"]:
        """Logits, always computed in fp32: in bf16 their rounding is 5 % of a teacher's target at temperature 0.04."""
        with torch.autocast(x.device.type, enabled=False):
            v = self.weight_v.float()
            weight = v * (self.weight_g.float() / v.norm(dim=1, keepdim=True))
            return F.linear(x.float(), weight)


class DINOHead(nn.Module):
    """Tokens to prototype logits, |logit| <= weight_g."""

    def __init__(self, in_dim: int, params: HeadParams) -> None:
        super().__init__()
        self.params = params
        widths = [in_dim, *[params.hidden_dim] * (params.num_layers - 1), params.bottleneck_dim]
        layers: list[nn.Module] = []
        for width_in, width_out in pairwise(widths):
            layers += [nn.Linear(width_in, width_out), nn.GELU()]
        self.mlp = nn.Sequential(*layers[:-1])
        self.last_layer = Prototypes(params.bottleneck_dim, params.num_prototypes)
        self.init_weights()

    def init_weights(self) -> None:
        """Fresh weights from torch's global generator."""
        for module in self.mlp:
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        self.last_layer.init_weights()

    def bottleneck(self, x: Float[Tensor, "n d"]) -> Float[Tensor, "n bottleneck"]:
        """What meets the prototypes: vectors of unit length, fp32. The losses go on from here, block by block."""
        return F.normalize(self.mlp(x).float(), dim=-1, eps=1e-12)

    def forward(self, x: Float[Tensor, "n d"]) -> Float[Tensor, "n k"]:
        """Logits of `x`, fp32."""
        return self.last_layer(self.bottleneck(x))
