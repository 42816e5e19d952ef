"""One step's mathematics, shared by pretraining and distillation: a teacher's targets and a student's losses.

Everything here is a function of tensors and networks. A "network" is an nn.ModuleDict of `backbone`, `dino_head` and,
unless the heads are tied, `ibot_head`. Losses look at CLS tokens and masked patches only, so only these are asked of a
backbone's last block and of the heads.
"""

from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from dinov2.losses.centering import Assignment, centered_softmax, sinkhorn_knopp, update_center
from dinov2.losses.cross_entropy import Student
from dinov2.losses.dino import dino_loss
from dinov2.losses.ibot import ibot_loss
from dinov2.losses.koleo import koleo_loss
from dinov2.losses.prototypes import Prototypes
from dinov2.models.attention import Backend, Shape
from dinov2.models.head import DINOHead
from dinov2.models.layers import Subsets, draw_subsets
from dinov2.models.params import HeadParams, ViTParams
from dinov2.models.recompute import Recompute
from dinov2.models.vit import VisionTransformer
from dinov2.train.params import Architecture, LossParams


class Batch(NamedTuple):
    """What a step sees: normalised crops, and the masks of the student's global crops."""

    global_crops: Float[Tensor, "2 b 3 h w"]
    local_crops: Float[Tensor, "l b 3 hl wl"]
    masks: Bool[Tensor, "2*b n"]
    """Crop-major: all of crop 0, then all of crop 1. Left on the CPU, they cost the device no synchronisation."""
    max_masked: int
    """Patches that may be masked: the work is padded to as many, so that every step has one shape; 0: it is not."""

    def parts(self, num_parts: int) -> list["Batch"]:
        """The batch in equal parts, in the order of its images."""
        masks = self.masks.unflatten(0, (2, -1)).chunk(num_parts, dim=1)
        local_crops = self.local_crops.chunk(num_parts, dim=1)
        return [
            Batch(crops, local, mask.flatten(0, 1), self.max_masked // num_parts)
            for crops, local, mask in zip(self.global_crops.chunk(num_parts, dim=1), local_crops, masks, strict=True)
        ]


class Targets(NamedTuple):
    """What the teacher makes of a batch."""

    cls: Assignment | None
    """Of each global crop, [2 b]; None if the image-level loss is off."""
    patches: Assignment | None
    """Of the patches at `rows`, [1 m]; None if the patch-level loss is off."""
    rows: Int[Tensor, " m"]
    """Numbers of those patches among the 2 b n of both global crops; on the CPU."""
    weights: Float[Tensor, " m"]
    """1 / how many patches of the same crop are among them."""


def build_network(
    model: ViTParams,
    dino_head: HeadParams,
    ibot_head: HeadParams | None,
    *,
    attention: Backend = "sdpa",
    recompute: Recompute = "none",
) -> nn.ModuleDict:
    """A backbone with fresh heads; `ibot_head` None ties the heads: dino_head then serves patches too."""
    backbone = VisionTransformer(model, attention=attention, recompute=recompute)
    network = nn.ModuleDict({"backbone": backbone, "dino_head": DINOHead(model.dim, dino_head)})
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


def architecture_of(network: nn.ModuleDict) -> Architecture:
    """What its networks are."""
    ibot_head = cast(DINOHead, network["ibot_head"]).params if "ibot_head" in network else None
    dino_head = cast(DINOHead, network["dino_head"]).params
    return Architecture(model=backbone_of(network).params, dino_head=dino_head, ibot_head=ibot_head)


def select_patches(masks: Bool[Tensor, "crops n"]) -> tuple[Int[Tensor, " m"], Float[Tensor, " m"]]:
    """Rows of the masked patches and their weights 1 / (masked patches of the crop)."""
    rows = masks.flatten().nonzero().squeeze(1)
    weights = (1.0 / masks.sum(1).clamp(min=1)).float().repeat_interleave(masks.shape[1])[rows]
    return rows, weights


class Targeting(nn.Module):
    """Makes targets of a teacher's features; holds the moving centres, if there are any."""

    def __init__(self, loss: LossParams, dino_head: HeadParams, ibot_head: HeadParams | None) -> None:
        super().__init__()
        self.loss = loss
        if loss.centering == "softmax":
            self.register_buffer("dino_center", torch.zeros(1, dino_head.num_prototypes))
            self.register_buffer("ibot_center", torch.zeros(1, (ibot_head or dino_head).num_prototypes))

    @torch.no_grad()
    def forward(self, teacher: nn.ModuleDict, parts: Sequence[Batch], temperature: float) -> list[Targets]:
        """Targets of each part's unmasked global crops and of their patches under its masks, made over all parts."""
        chosen = [select_patches(part.masks) for part in parts]
        device = parts[0].global_crops.device
        bare = [Targets(None, None, rows, weights.to(device, non_blocking=True)) for rows, weights in chosen]
        if self.loss.dino_weight == 0 and self.loss.ibot_weight == 0:
            return bare
        vectors = [self._look(teacher, part, rows) for part, (rows, _) in zip(parts, chosen, strict=True)]
        cls = patches = [None] * len(parts)
        if self.loss.dino_weight > 0:
            all_cls = torch.cat([each.unflatten(0, (2, -1)) for each, _ in vectors], dim=1)  # [2 b d]
            rows = all_cls.flatten(0, 1)
            assignment = self._assign(rows, _prototypes(teacher, "dino_head"), "dino", temperature, len(rows))
            sizes = [part.global_crops.shape[1] for part in parts]
            cls = _split(assignment, all_cls.shape[:2], sizes)
        if self.loss.ibot_weight > 0:
            all_patches = torch.cat([each for _, each in vectors])
            most = sum(part.masks.numel() for part in parts)  # the same on all processes
            assignment = self._assign(all_patches, _prototypes(teacher, "ibot_head"), "ibot", temperature, most)
            patches = _split(assignment, (1, len(all_patches)), [len(each) for _, each in vectors])
        return [each._replace(cls=c, patches=p) for each, c, p in zip(bare, cls, patches, strict=True)]

    def _look(self, teacher: nn.ModuleDict, part: Batch, rows: Tensor) -> tuple[Tensor, Tensor]:
        """The head's vectors of one part's CLS tokens and patches, whichever are asked for."""
        crops = part.global_crops.flatten(0, 1)
        wanted = rows if self.loss.ibot_weight > 0 else rows[:0]
        cls, patches = _tokens(teacher, [crops], [None], wanted, max_patches=part.max_masked, subsets=None)
        return _vectors(
            teacher, cls if self.loss.dino_weight > 0 else cls[:0], patches, tied="ibot_head" not in teacher
        )

    def _assign(
        self, features: Tensor, prototypes: Prototypes, level: str, temperature: float, most: int
    ) -> Assignment:
        if self.loss.centering == "sinkhorn":
            return sinkhorn_knopp(
                features, prototypes,
                temperature=temperature, num_iterations=self.loss.sinkhorn_iterations, most_samples=most,
            )  # fmt: skip
        center = self.get_buffer(f"{level}_center")
        assignment = centered_softmax(features, prototypes, center.clone(), temperature=temperature)
        update_center(center, features, prototypes, momentum=self.loss.center_momentum)
        return assignment


def student_losses(
    student: nn.ModuleDict,
    batch: Batch,
    targets: Targets,
    loss: LossParams,
    *,
    masked: bool,
    group_size: int,
    group_seeds: Sequence[int] | None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """(what is optimised: the weighted sum; its unweighted terms without a gradient, none whose weight is 0).

    dino_local, dino_global: sums over pairs of crops, divided by all pairs of different crops (18 with 8 local crops).
    ibot: mean over all global crops. koleo: sum over the two crops, of means over groups of `group_size` images.
    `masked`: whether the student sees its global crops under the batch's masks. `group_seeds` decide stochastic depth.
    """
    num_images = batch.global_crops.shape[1]
    device = batch.global_crops.device
    crops = [batch.global_crops.flatten(0, 1)]
    masks = [batch.masks.to(device, non_blocking=True) if masked else None]
    if len(batch.local_crops) and loss.dino_weight > 0:
        crops, masks = [*crops, batch.local_crops.flatten(0, 1)], [*masks, None]
    subsets = _draw_subsets(backbone_of(student), crops, num_images, group_size, group_seeds)
    rows = targets.rows if targets.patches is not None else targets.rows[:0]
    cls, patches = _tokens(student, crops, masks, rows, max_patches=batch.max_masked, subsets=subsets)
    asked = cls if targets.cls is not None else cls[:0]
    cls_vectors, patch_vectors = _vectors(student, asked, patches, tied="ibot_head" not in student)

    total = cls.new_zeros((), dtype=torch.float32)
    terms: dict[str, Tensor] = {}
    if targets.cls is not None:
        side = _student(student, "dino_head", cls_vectors.unflatten(0, (-1, num_images)), loss)
        dino, local, between_globals = dino_loss(targets.cls, side)
        total = total + loss.dino_weight * dino
        terms |= ({"dino_local": local} if len(crops) > 1 else {}) | {"dino_global": between_globals}
    if targets.patches is not None:
        side = _student(student, "ibot_head", patch_vectors.unsqueeze(0), loss)
        ibot = ibot_loss(targets.patches, side, targets.weights, num_crops=2 * num_images)
        total = total + loss.ibot_weight * ibot
        terms["ibot"] = ibot.detach()
    if loss.koleo_weight > 0:
        koleo = koleo_loss(cls[: 2 * num_images].unflatten(0, (2, -1, group_size))).mean(1).sum()
        total = total + loss.koleo_weight * koleo
        terms["koleo"] = koleo.detach()
    return total, terms


@torch.no_grad()
def move_average(average: nn.Module, latest: nn.Module, momentum: float) -> None:
    """average = momentum * average + (1 - momentum) * latest, for all parameters; of sharded ones, each its shard."""
    for module in average.modules():
        if isinstance(module, FSDPModule):
            module.reshard()  # a root stays gathered after a forward that has no backward; its copy would be lost
    pairs = zip(average.parameters(), latest.parameters(), strict=True)
    local = [(local_part(old), local_part(new)) for old, new in pairs]
    torch._foreach_lerp_(  # pyright: ignore[reportPrivateImportUsage]  # optimisers' own kernel: one pass, one launch
        [old for old, _ in local], [new for _, new in local], 1 - momentum
    )


def local_part(tensor: Tensor) -> Tensor:
    """A sharded tensor's own shard, sharing its memory; any other tensor itself."""
    to_local = getattr(tensor, "to_local", None)  # DTensor's
    return to_local() if to_local else tensor


def _tokens(
    network: nn.ModuleDict,
    crops: list[Tensor],
    masks: Sequence[Tensor | None],
    patches: Int[Tensor, " m"],
    *,
    max_patches: int,
    subsets: Subsets | None,
) -> tuple[Float[Tensor, "crops d"], Float[Tensor, "m d"]]:
    """CLS tokens of all crops, and the patches of those numbers among the first crop size's."""
    backbone = backbone_of(network)
    cls = _cls_rows(_shapes(backbone, crops))
    num_tokens = backbone.params.num_tokens(*crops[0].shape[2:])
    num_patches = num_tokens - 1 - backbone.params.num_registers
    patch_rows = patches // num_patches * num_tokens + num_tokens - num_patches + patches % num_patches
    padding = patches.new_zeros(max(max_patches - len(patches), 0))
    tokens = backbone.tokens(crops, masks, torch.cat([cls, patch_rows, padding]), subsets)
    return tokens[: len(cls)], tokens[len(cls) : len(cls) + len(patches)]


def _shapes(backbone: VisionTransformer, crops: list[Tensor]) -> list[Shape]:
    return [(len(images), backbone.params.num_tokens(*images.shape[2:])) for images in crops]


def _cls_rows(shapes: list[Shape]) -> Int[Tensor, " crops"]:
    lengths = torch.cat([torch.full((samples,), length) for samples, length in shapes])
    return lengths.cumsum(0) - lengths


def _vectors(network: nn.ModuleDict, cls: Tensor, patches: Tensor, *, tied: bool) -> tuple[Tensor, Tensor]:
    """What meets the prototypes, of CLS tokens and of patches; tied heads take both in one pass. None of none."""
    if tied:
        both = cast(DINOHead, network["dino_head"]).bottleneck(torch.cat([cls, patches]))
        return both[: len(cls)], both[len(cls) :]
    heads = (cast(DINOHead, network["dino_head"]), cast(DINOHead, network["ibot_head"]))
    return heads[0].bottleneck(cls), heads[1].bottleneck(patches)


def _prototypes(network: nn.ModuleDict, name: str) -> Prototypes:
    """Of a head, gathered if it is sharded: its `bottleneck` was called before and leaves them so."""
    layer = cast(DINOHead, network[name if name in network else "dino_head"]).last_layer
    return Prototypes(layer.weight_v, layer.weight_g)


def _student(network: nn.ModuleDict, name: str, vectors: Tensor, loss: LossParams) -> Student:
    return Student(vectors, _prototypes(network, name), loss.student_temperature)


def _split(assignment: Assignment, shape: Sequence[int], sizes: list[int]) -> list[Assignment]:
    ends = torch.tensor(sizes).cumsum(0).tolist()
    return [assignment.rows(tuple(shape), end - size, end) for size, end in zip(sizes, ends, strict=True)]


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
    return draw_subsets(_shapes(backbone, crops), num_images, params.depth, params.drop_path, generators)
