"""One step's mathematics, shared by pretraining and distillation: a teacher's targets and a student's losses.

Everything here is a function of tensors and networks. A "network" is an nn.ModuleDict of `backbone`, `dino_head` and,
unless the heads are tied, `ibot_head`.
"""

from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from dinov2.losses.centering import centered_softmax, sinkhorn_knopp, update_center
from dinov2.losses.dino import dino_global_loss, dino_local_loss, num_dino_terms
from dinov2.losses.ibot import ibot_loss
from dinov2.losses.koleo import koleo_loss
from dinov2.models.attention import Backend
from dinov2.models.head import DINOHead
from dinov2.models.layers import Subsets, draw_subsets
from dinov2.models.params import HeadParams, ViTParams
from dinov2.models.vit import VisionTransformer
from dinov2.train.params import LossParams


class Batch(NamedTuple):
    """What a step sees: normalised crops, and the masks of the student's global crops."""

    global_crops: Float[Tensor, "2 b 3 h w"]
    local_crops: Float[Tensor, "l b 3 hl wl"]
    masks: Bool[Tensor, "2*b n"]
    """Crop-major: all of crop 0, then all of crop 1. Left on the CPU, they cost the device no synchronisation."""


class Targets(NamedTuple):
    """What the teacher makes of a batch."""

    cls: Float[Tensor, "2 b k"] | None
    """Of each global crop; None if the image-level loss is off."""
    patches: Float[Tensor, "m k"] | None
    """Of the patches at `rows`; None if the patch-level loss is off."""
    rows: Int[Tensor, " m"]
    """Numbers of those patches among the 2 b n of both global crops."""
    weights: Float[Tensor, " m"]
    """1 / how many patches of the same crop are among them."""


def build_network(
    model: ViTParams, dino_head: HeadParams, ibot_head: HeadParams | None, attention: Backend
) -> nn.ModuleDict:
    """A backbone with fresh heads; `ibot_head` None ties the heads: dino_head then serves patches too."""
    network = nn.ModuleDict(
        {"backbone": VisionTransformer(model, attention=attention), "dino_head": DINOHead(model.dim, dino_head)}
    )
    if ibot_head is not None:
        network["ibot_head"] = DINOHead(model.dim, ibot_head)
    return network


def init_network(network: nn.ModuleDict) -> None:
    """Fresh weights in place, from torch's global generator; fills a network that was built on the meta device."""
    for module in network.values():
        cast(VisionTransformer | DINOHead, module).init_weights()


def backbone_of(network: nn.ModuleDict) -> VisionTransformer:
    """The backbone of a network."""
    return cast(VisionTransformer, network["backbone"])


def select_patches(
    masks: Bool[Tensor, "crops n"], device: torch.device
) -> tuple[Int[Tensor, " m"], Float[Tensor, " m"]]:
    """Rows of the masked patches and their weights 1 / (masked patches of the crop), on `device`."""
    rows = masks.flatten().nonzero().squeeze(1)
    weights = (1.0 / masks.sum(1).clamp(min=1)).float().repeat_interleave(masks.shape[1])[rows]
    return rows.to(device, non_blocking=True), weights.to(device, non_blocking=True)


class Targeting(nn.Module):
    """Makes targets of a teacher's logits; holds the moving centres, if there are any."""

    def __init__(self, loss: LossParams, dino_head: HeadParams, ibot_head: HeadParams | None) -> None:
        super().__init__()
        self.loss = loss
        self.tied = ibot_head is None
        if loss.centering == "softmax":
            self.register_buffer("dino_center", torch.zeros(1, dino_head.num_prototypes))
            self.register_buffer("ibot_center", torch.zeros(1, (ibot_head or dino_head).num_prototypes))

    @torch.no_grad()
    def forward(
        self,
        teacher: nn.ModuleDict,
        crops: Float[Tensor, "2 b 3 h w"],
        masks: Bool[Tensor, "2*b n"],
        temperature: float,
    ) -> Targets:
        """Targets of both unmasked global crops, and of their patches under `masks`."""
        rows, weights = select_patches(masks, crops.device)
        if self.loss.dino_weight == 0 and self.loss.ibot_weight == 0:
            return Targets(None, None, rows, weights)
        features = backbone_of(teacher).features(crops.flatten(0, 1))
        cls = features.cls if self.loss.dino_weight > 0 else None
        patches = features.patches.flatten(0, 1).index_select(0, rows) if self.loss.ibot_weight > 0 else None
        cls_logits, patch_logits = _logits(teacher, cls, patches)
        return Targets(
            None if cls_logits is None else self._normalise(cls_logits, "dino", temperature).unflatten(0, (2, -1)),
            None if patch_logits is None else self._normalise(patch_logits, "ibot", temperature),
            rows,
            weights,
        )

    def _normalise(self, logits: Tensor, level: str, temperature: float) -> Tensor:
        if self.loss.centering == "sinkhorn":
            return sinkhorn_knopp(logits, temperature=temperature, num_iterations=self.loss.sinkhorn_iterations)
        center = self.get_buffer(f"{level}_center")
        targets = centered_softmax(logits, center, temperature=temperature)
        update_center(center, logits, momentum=self.loss.center_momentum)
        return targets


def student_losses(
    student: nn.ModuleDict,
    batch: Batch,
    targets: Targets,
    loss: LossParams,
    *,
    masked: bool,
    group_size: int,
    group_seeds: Sequence[int] | None,
) -> dict[str, Tensor]:
    """The unweighted terms of the objective, on the scale that is optimised; terms of weight 0 are left out.

    dino_local, dino_global: sums over pairs of crops, divided by all pairs of different crops (18 with 8 local crops).
    ibot: mean over all global crops. koleo: sum over the two crops, of means over groups of `group_size` images.
    `masked`: whether the student sees its global crops under the batch's masks. `group_seeds` decide stochastic depth.
    """
    num_local, num_images = batch.local_crops.shape[:2]
    crops, masks = [batch.global_crops.flatten(0, 1)], [batch.masks.to(batch.global_crops.device) if masked else None]
    if num_local and loss.dino_weight > 0:
        crops, masks = [*crops, batch.local_crops.flatten(0, 1)], [*masks, None]
    subsets = _draw_subsets(backbone_of(student), crops, num_images, group_size, group_seeds)
    features = backbone_of(student).features_packed(crops, masks, subsets)

    cls = torch.cat([part.cls for part in features]) if targets.cls is not None else None
    patches = None
    if targets.patches is not None:
        patches = features[0].patches.flatten(0, 1).index_select(0, targets.rows)
    cls_logits, patch_logits = _logits(student, cls, patches)

    losses: dict[str, Tensor] = {}
    if targets.cls is not None and cls_logits is not None:
        cls_logits = cls_logits.unflatten(0, (-1, num_images))
        temperature, terms = loss.student_temperature, num_dino_terms(num_local)
        if num_local:
            losses["dino_local"] = dino_local_loss(targets.cls, cls_logits[2:], temperature=temperature) / terms
        losses["dino_global"] = dino_global_loss(targets.cls, cls_logits[:2], temperature=temperature) / terms
    if targets.patches is not None and patch_logits is not None:
        losses["ibot"] = ibot_loss(
            targets.patches,
            patch_logits,
            targets.weights,
            num_crops=2 * num_images,
            temperature=loss.student_temperature,
        )
    if loss.koleo_weight > 0:
        groups = features[0].cls.unflatten(0, (2, -1, group_size))
        losses["koleo"] = koleo_loss(groups).mean(1).sum()
    return losses


def total_loss(losses: dict[str, Tensor], loss: LossParams) -> Float[Tensor, ""]:
    """The weighted sum that is optimised."""
    weights = {
        "dino_local": loss.dino_weight,
        "dino_global": loss.dino_weight,
        "ibot": loss.ibot_weight,
        "koleo": loss.koleo_weight,
    }
    return torch.stack([weights[name] * value for name, value in losses.items()]).sum()


@torch.no_grad()
def move_average(average: nn.Module, latest: nn.Module, momentum: float) -> None:
    """average = momentum * average + (1 - momentum) * latest, for all parameters; of sharded ones, each its shard."""
    for module in average.modules():
        if isinstance(module, FSDPModule):
            module.reshard()  # a root stays gathered after a forward that has no backward; its copy would be lost
    pairs = zip(average.parameters(), latest.parameters(), strict=True)
    local = [(_local(old), _local(new)) for old, new in pairs]
    torch._foreach_lerp_(  # pyright: ignore[reportPrivateImportUsage]  # optimisers' own kernel: one pass, one launch
        [old for old, _ in local], [new for _, new in local], 1 - momentum
    )


def _local(parameter: Tensor) -> Tensor:
    to_local = getattr(parameter, "to_local", None)  # DTensor's
    return to_local() if to_local else parameter


def _logits(network: nn.ModuleDict, cls: Tensor | None, patches: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """Logits of CLS tokens and of patches; tied heads take both in one pass."""
    if cls is not None and patches is not None and "ibot_head" not in network:
        both = network["dino_head"](torch.cat([cls, patches]))
        return both[: len(cls)], both[len(cls) :]
    patch_head = network["ibot_head"] if "ibot_head" in network else network["dino_head"]
    return (
        None if cls is None else network["dino_head"](cls),
        None if patches is None else patch_head(patches),
    )


def _draw_subsets(
    backbone: VisionTransformer,
    crops: list[Tensor],
    num_images: int,
    group_size: int,
    group_seeds: Sequence[int] | None,
) -> Subsets | None:
    params = backbone.params
    if not backbone.training or params.drop_path == 0:
        return None
    seeds, num_groups = group_seeds or [], num_images // group_size
    assert len(seeds) == num_groups, f"stochastic depth needs {num_groups} group_seeds, got {len(seeds)}"
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    shapes = [(len(images), params.num_tokens(*images.shape[2:])) for images in crops]
    return draw_subsets(shapes, num_images, params.depth, params.drop_path, generators)
