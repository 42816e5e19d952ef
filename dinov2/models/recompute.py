"""Activations that are computed again in the backward pass instead of being kept.

`pointwise` keeps what matrix products and attention gave and computes norms, GELUs, scales and copies of rows again:
some two fifths of a block's memory for a few percent of its time. `block` keeps only a block's input: least memory, a
third more arithmetic. Neither changes any number. Compiled blocks do the first by themselves.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.checkpoint import (
    CheckpointPolicy,
    SelectiveCheckpointContext,
    checkpoint,
    create_selective_checkpoint_contexts,
    noop_context_fn,
)

Recompute = Literal["none", "pointwise", "block"]

aten = torch.ops.aten
KEPT = {
    aten.mm.default,
    aten.addmm.default,
    aten._scaled_dot_product_flash_attention_for_cpu.default,
    aten._scaled_dot_product_flash_attention.default,
    aten._scaled_dot_product_efficient_attention.default,
    aten._scaled_dot_product_cudnn_attention.default,
    aten._efficient_attention_forward.default,
    aten._flash_attention_forward.default,
}


def run_block(block: Callable[..., Tensor], recompute: Recompute, *arguments: Any) -> Tensor:
    """block(*arguments), whose activations are kept or not; as it is where no gradient is taken."""
    if recompute == "none" or not torch.is_grad_enabled():
        return block(*arguments)
    contexts = noop_context_fn if recompute == "block" else _contexts
    return checkpoint(block, *arguments, use_reentrant=False, preserve_rng_state=False, context_fn=contexts)


def _keep_products(context: SelectiveCheckpointContext, operation: Any, *_: Any, **__: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if operation in KEPT else CheckpointPolicy.PREFER_RECOMPUTE


_contexts = partial(create_selective_checkpoint_contexts, _keep_products)
