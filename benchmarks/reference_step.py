"""The other side of benchmarks/train_step.py: facebookresearch/dinov2's own step, run from a checkout.

Started by it, not by hand, with the checkout on PYTHONPATH. Nothing of the checkout is copied or changed; what it needs
and a CPU has not is put in its place here, by our own code, at the same or a lower cost:

- xformers: attention in blocks is PyTorch's own once a crop size, the fused index kernels are plain indexing.
- FSDP, which refuses a CPU: the plain module, with FSDP's `params` and `clip_grad_norm_`.
- `.cuda()`: the tensor itself. Streams: not synchronised, for there are none.
- torchvision and fvcore, which only its data path and checkpoints use: empty modules.

On a GPU it runs as configured (fp16, ShardedGradScaler, FSDP, xformers if installed).
"""

import importlib.util
import math
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import torch.distributed as dist
from step_case import (
    CLIP_NORM,
    LAST_LAYER_LR,
    LAYERSCALE,
    LR,
    MOMENTUM,
    TEACHER_TEMPERATURE,
    WEIGHT_DECAY,
    Batch,
    Case,
    Side,
    read_batch,
    serve,
)
from torch import Tensor, nn
from torch._C._distributed_c10d import HashStore
from torch.nn import functional as F


class BlockDiagonalMask:
    """Samples that lie one after the other in a tensor [1 tokens ...], and attend each to itself."""

    def __init__(self, lengths: Sequence[int]) -> None:
        self.lengths = list(lengths)
        self._batch_sizes: Sequence[int] | None = None  # samples of each tensor they came from; set by the reference

    @classmethod
    def from_seqlens(cls, lengths: Sequence[int]) -> "BlockDiagonalMask":
        """Samples of these lengths."""
        return cls(lengths)

    @classmethod
    def from_tensor_list(cls, tensors: Sequence[Tensor]) -> tuple["BlockDiagonalMask", Tensor]:
        """The samples of tensors [samples length ...], and all of them as one."""
        mask = cls([tensor.shape[1] for tensor in tensors for _ in range(len(tensor))])
        mask._batch_sizes = [len(tensor) for tensor in tensors]
        return mask, torch.cat([tensor.flatten(0, 1) for tensor in tensors]).unsqueeze(0)

    def stretches(self) -> list[tuple[int, int]]:
        """(samples, length) of each tensor they came from."""
        sizes, found, first = self._batch_sizes or [1] * len(self.lengths), [], 0
        for size in sizes:
            found.append((size, self.lengths[first]))
            first += size
        return found

    def split(self, packed: Tensor) -> list[Tensor]:
        """[1 tokens ...] as one tensor [samples length ...] of each tensor they came from."""
        parts = packed.squeeze(0).split([size * length for size, length in self.stretches()])
        return [part.unflatten(0, shape) for part, shape in zip(parts, self.stretches(), strict=True)]


def memory_efficient_attention(q: Tensor, k: Tensor, v: Tensor, attn_bias: BlockDiagonalMask | None = None) -> Tensor:
    """Attention of [samples length heads dim], or of packed samples [1 tokens heads dim]."""
    if attn_bias is None:
        return _attend(q, k, v)
    parts = zip(*(attn_bias.split(each) for each in (q, k, v)), strict=True)
    return torch.cat([_attend(*part).flatten(0, 1) for part in parts]).unsqueeze(0)


def _attend(*qkv: Tensor) -> Tensor:
    q, k, v = (each.transpose(1, 2) for each in qkv)
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)


def index_select_cat(sources: Sequence[Tensor], indices: Sequence[Tensor]) -> Tensor:
    """The chosen rows of all sources, as one flat tensor."""
    return torch.cat([source[index].flatten() for source, index in zip(sources, indices, strict=True)])


def scaled_index_add(x: Tensor, index: Tensor, source: Tensor, scaling: Tensor, alpha: float) -> Tensor:
    """x with alpha * scaling * source added to its rows at `index`."""
    return x.index_add(0, index, source * scaling, alpha=alpha)


def _put_module(name: str, **members: Any) -> None:
    module = ModuleType(name)
    for key, value in members.items():
        setattr(module, key, value)
    sys.modules[name] = module


def put_stand_ins(device: str) -> None:
    """Before the reference is imported: modules for those that are absent, and a `.cuda()` for a CPU."""
    data = ("SamplerType", "make_data_loader", "make_dataset", "collate_data_and_cast", "DataAugmentationDINO")
    _put_module("dinov2.data", **dict.fromkeys((*data, "MaskingGenerator")))
    _put_module("fvcore")
    _put_module("fvcore.common")
    _put_module("fvcore.common.checkpoint", Checkpointer=object, PeriodicCheckpointer=object)
    if device == "cpu":
        torch.Tensor.cuda = lambda self, *_args, **_kwargs: self
    if device == "cpu" or importlib.util.find_spec("xformers") is None:
        fmha = ModuleType("xformers.ops.fmha")
        fmha.BlockDiagonalMask = BlockDiagonalMask  # pyright: ignore[reportAttributeAccessIssue]
        _put_module("xformers")
        _put_module(
            "xformers.ops", fmha=fmha, memory_efficient_attention=memory_efficient_attention, unbind=torch.unbind,
            index_select_cat=index_select_cat, scaled_index_add=scaled_index_add,
        )  # fmt: skip


class Unsharded:
    """FSDP of one process on a CPU: it gives a module the two things that the reference uses."""

    def __init__(self, *_args: Any, **_kwargs: Any) -> None:
        pass

    def __call__(self, module: nn.Module) -> nn.Module:
        members = {
            "params": list(module.parameters()),
            "clip_grad_norm_": lambda norm: nn.utils.clip_grad_norm_(module.parameters(), norm),
        }
        for name, member in members.items():
            object.__setattr__(module, name, member)  # nn.Module's own would take them for parts of the network
        return module


def configuration(case: Case) -> Any:
    """The reference's default configuration with the case's sizes, and its vitl14.yaml's centering and heads."""
    from dinov2.configs import dinov2_default_config  # pyright: ignore[reportMissingImports]  # the checkout's
    from omegaconf import OmegaConf

    head = {"head_n_prototypes": case.num_prototypes, "head_bottleneck_dim": case.bottleneck_dim}
    ratios = [case.mask_ratio_min, case.mask_ratio_max]
    changes = {
        "compute_precision": {"grad_scaler": case.device == "cuda"},
        "dino": head,
        "ibot": {
            **head,
            "separate_head": True,
            "mask_sample_probability": case.mask_probability,
            "mask_ratio_min_max": ratios,
        },
        "train": {"batch_size_per_gpu": case.batch_size, "centering": "sinkhorn_knopp"},
        "student": {
            "arch": case.arch, "patch_size": case.patch_size, "drop_path_rate": case.drop_path,
            "layerscale": LAYERSCALE, "ffn_layer": "swiglufused" if case.ffn == "swiglu" else "mlp",
        },
        "optim": {"clip_grad": CLIP_NORM, "layerwise_decay": 1.0},
        "crops": {
            "local_crops_number": case.num_local, "global_crops_size": case.global_px,
            "local_crops_size": case.local_px,
        },
    }  # fmt: skip
    return OmegaConf.merge(OmegaConf.create(dinov2_default_config), OmegaConf.create(changes))


def collated(batch: Batch, case: Case) -> dict[str, Any]:
    """The batch as the reference's collate function gives it; `upperbound` rows go through its patch heads."""
    masks = batch.masks
    num_masked = int(len(masks) * case.mask_probability)
    bounds = torch.linspace(case.mask_ratio_min, case.mask_ratio_max, num_masked + 1).tolist()
    weights = (1 / masks.sum(-1).clamp(min=1.0)).unsqueeze(-1).expand_as(masks)[masks]
    indices = masks.flatten().nonzero().flatten()
    dtype = torch.half if case.device == "cuda" else torch.float
    return {
        "collated_global_crops": batch.global_crops.flatten(0, 1).to(dtype),
        "collated_local_crops": batch.local_crops.flatten(0, 1).to(dtype),
        "collated_masks": masks,
        "mask_indices_list": indices,
        "masks_weight": weights,
        "upperbound": sum(int(case.grid**2 * bound) for bound in bounds[1:]),
        "n_masked_patches": torch.full((1,), len(indices), dtype=torch.long),
    }


def build(case: Case, folder: Path) -> Side:
    """SSLMetaArch with fresh weights, which are written into `folder` for the other side, and the steps of do_train."""
    warnings.simplefilter("ignore")
    put_stand_ins(case.device)
    from dinov2.train import ssl_meta_arch, train  # pyright: ignore[reportMissingImports, reportAttributeAccessIssue]

    is_cpu = case.device == "cpu"
    dist.init_process_group("gloo" if is_cpu else "nccl", store=HashStore(), rank=0, world_size=1)
    if is_cpu:
        ssl_meta_arch.get_fsdp_wrapper = Unsharded
        ssl_meta_arch.get_fsdp_modules = lambda module: [module]
        ssl_meta_arch.reshard_fsdp_model = lambda _module: None
    cfg = configuration(case)
    model: Any = ssl_meta_arch.SSLMetaArch(cfg).to(case.device)
    torch.save(model.student.state_dict(), folder / "weights.pt")
    model.prepare_for_distributed_training()
    model.need_to_synchronize_fsdp_streams = False  # a CPU has none, and today's FSDP hides them
    model.train()
    optimizer = train.build_optimizer(cfg, model.get_params_groups())
    batch = collated(read_batch(folder / "batch.pt"), case)
    totals: list[Tensor] = []

    def backward(loss: Tensor) -> None:
        totals.append(loss.detach())
        with torch.autocast(case.device, enabled=False):  # as PyTorch advises
            type(model).backprop_loss(model, loss)

    model.backprop_loss = backward

    def step(precision: str) -> dict[str, float]:
        train.apply_optim_scheduler(optimizer, LR, WEIGHT_DECAY, LAST_LAYER_LR)
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=is_cpu and precision == "bf16"):
            losses = model.forward_backward(batch, teacher_temp=TEACHER_TEMPERATURE)
        scaler = model.fp16_scaler
        if scaler is not None:
            scaler.unscale_(optimizer)
        for module in model.student.values():
            module.clip_grad_norm_(CLIP_NORM)
        if scaler is None:
            optimizer.step()
        else:
            scaler.step(optimizer)
            scaler.update()
        model.update_teacher(MOMENTUM)
        shown = {name: value.item() for name, value in losses.items()}
        assert not math.isnan(sum(shown.values())), shown
        return {  # it shows half of two of them, and KoLeo's weighted by 0.1
            "dino_local": shown["dino_local_crops_loss"],
            "dino_global": shown["dino_global_crops_loss"],
            "ibot": 2 * shown["ibot_loss"],
            "koleo": 2 * shown["koleo_loss"] / cfg.dino.koleo_loss_weight,
            "total": totals.pop().item(),
        }

    return Side(step, [model.student, model.teacher], sum(p.numel() for p in model.student.parameters()))


if __name__ == "__main__":
    serve(build)
