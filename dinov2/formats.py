"""State dicts of backbones as other code names them, both ways: timm, transformers, the reference's training.

No value is computed anew, so that what goes and comes back is the same bit for bit, but for what timm has no place for:
the mask token, and in networks with registers the position of CLS, which it keeps added to the CLS token itself.
"""

import re
from collections.abc import Mapping
from typing import Literal

import torch
from pydantic import JsonValue
from torch import Tensor

from dinov2.models.params import ViTParams

Format = Literal["reference", "timm", "transformers"]

OUTSIDE = {
    "cls_token": "embeddings.cls_token",
    "mask_token": "embeddings.mask_token",
    "register_tokens": "embeddings.register_tokens",
    "pos_embed": "embeddings.position_embeddings",
    "patch_embed.proj.weight": "embeddings.patch_embeddings.projection.weight",
    "patch_embed.proj.bias": "embeddings.patch_embeddings.projection.bias",
    "norm.weight": "layernorm.weight",
    "norm.bias": "layernorm.bias",
}
"""Ours -> transformers', outside of the blocks."""

INSIDE = {
    "norm1": ("norm1",),
    "attn.qkv": ("attention.attention.query", "attention.attention.key", "attention.attention.value"),
    "attn.proj": ("attention.output.dense",),
    "ls1.gamma": ("layer_scale1.lambda1",),
    "norm2": ("norm2",),
    "mlp.fc1": ("mlp.fc1",),
    "mlp.fc2": ("mlp.fc2",),
    "mlp.w12": ("mlp.weights_in",),
    "mlp.w3": ("mlp.weights_out",),
    "ls2.gamma": ("layer_scale2.lambda1",),
}
"""Ours -> the parts of it in the files of transformers' models, which its version 5 reads and writes as well."""

INSIDE_IN_MEMORY = {
    "attn.qkv": ("attention.q_proj", "attention.k_proj", "attention.v_proj"),
    "attn.proj": ("attention.o_proj",),
    "mlp.w12": ("mlp.gate_proj", "mlp.up_proj"),
    "mlp.w3": ("mlp.down_proj",),
}
"""What transformers 5 calls these in the `state_dict()` of a model."""


def to_reference(state: Mapping[str, Tensor], params: ViTParams) -> dict[str, Tensor]:
    """The reference's names for a state dict of any of the formats; names that belong to none stay as they are."""
    if any(name.startswith("embeddings.") for name in state):
        return from_transformers(state)
    if any(name.startswith("backbone.") for name in state):
        return from_training(state)
    if "mask_token" not in state and "cls_token" in state:
        return from_timm(state, params)
    return dict(state)


def to_format(state: Mapping[str, Tensor], to: Format) -> dict[str, Tensor]:
    """Our state dict under the names of `to`."""
    if to == "timm":
        return to_timm(state)
    return to_transformers(state) if to == "transformers" else dict(state)


def to_transformers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """For the files of Dinov2Model, or of Dinov2WithRegistersModel where there are registers."""
    result = {}
    for name, value in state.items():
        match = re.fullmatch(r"blocks\.(\d+)\.(.+?)(\.weight|\.bias)?", name)
        if match is None:
            result[OUTSIDE[name]] = value
            continue
        parts = INSIDE[match[2]]
        for part, piece in zip(parts, value.chunk(len(parts)), strict=True):
            result[f"encoder.layer.{match[1]}.{part}{match[3] or ''}"] = piece.contiguous()
    return result


def from_transformers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Of a file, or of a model in memory of transformers 5."""
    outside = {theirs: ours for ours, theirs in OUTSIDE.items()}
    inside = {
        part: (ours, place)
        for table in (INSIDE, INSIDE_IN_MEMORY)
        for ours, parts in table.items()
        for place, part in enumerate(parts)
    }
    result: dict[str, Tensor] = {}
    pieces: dict[str, dict[int, Tensor]] = {}
    for name, value in state.items():
        match = re.fullmatch(r"encoder\.layer\.(\d+)\.(.+?)(\.weight|\.bias)?", name)
        if match is None or match[2] not in inside:
            result[outside.get(name, name)] = value
            continue
        ours, place = inside[match[2]]
        pieces.setdefault(f"blocks.{match[1]}.{ours}{match[3] or ''}", {})[place] = value
    for name, found in pieces.items():
        result[name] = torch.cat([found[place] for place in sorted(found)])
    return result


def to_timm(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """For timm's `vit_*_patch14_dinov2` and `vit_*_patch14_reg4_dinov2`."""
    result = {
        re.sub(r"\.mlp\.w3\.", ".mlp.fc2.", name.replace(".mlp.w12.", ".mlp.fc1.")): value
        for name, value in state.items()
        if name != "mask_token"
    }
    if "register_tokens" in result:
        positions = result["pos_embed"]
        result["reg_token"] = result.pop("register_tokens")
        result["cls_token"] = result["cls_token"] + positions[:, :1]
        result["pos_embed"] = positions[:, 1:].contiguous()
    return result


def from_timm(state: Mapping[str, Tensor], params: ViTParams) -> dict[str, Tensor]:
    """With a mask token of zeros, its initial value; with registers, CLS's position is 0 and its token has it."""
    result = dict(state)
    if params.ffn == "swiglu":
        for name in [name for name in result if ".mlp.fc" in name]:
            result[name.replace(".fc1.", ".w12.").replace(".fc2.", ".w3.")] = result.pop(name)
    token = result["cls_token"]
    result["mask_token"] = torch.zeros_like(token[0])
    if "reg_token" in result:
        result["register_tokens"] = result.pop("reg_token")
        result["pos_embed"] = torch.cat([torch.zeros_like(token), result["pos_embed"]], dim=1)
    return result


def from_training(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The backbone of a teacher checkpoint that the reference's training wrote: heads left out, blocks unchunked."""
    backbone = {
        name.removeprefix("backbone."): value for name, value in state.items() if name.startswith("backbone.")
    }
    return {re.sub(r"^blocks\.\d+\.(\d+)\.", r"blocks.\1.", name): value for name, value in backbone.items()}


def transformers_config(params: ViTParams) -> dict[str, JsonValue]:
    """The `config.json` beside the weights, for `AutoModel.from_pretrained`."""
    registers: dict[str, JsonValue] = {"num_register_tokens": params.num_registers} if params.num_registers else {}
    name = "Dinov2WithRegisters" if registers else "Dinov2"
    return {
        "architectures": [f"{name}Model"],
        "model_type": "dinov2_with_registers" if registers else "dinov2",
        "hidden_size": params.dim,
        "num_hidden_layers": params.depth,
        "num_attention_heads": params.heads,
        "mlp_ratio": 4,
        "use_swiglu_ffn": params.ffn == "swiglu",
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-6,
        "qkv_bias": True,
        "layerscale_value": params.layerscale,
        "image_size": params.image_size_px,
        "patch_size": params.patch_size,
        "num_channels": 3,
        "torch_dtype": "float32",
        **registers,
    }


def is_interpolated_alike(params: ViTParams, to: Format) -> bool:
    """Whether the other code interpolates positions to other image sizes as `params` says."""
    if to == "reference":
        return True
    antialias = to == "timm" or params.num_registers > 0
    return params.interpolate_offset == 0 and params.interpolate_antialias == antialias
