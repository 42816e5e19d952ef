"""A copy of a training's state on the CPU, taken at a step's end, for a thread to write while training goes on.

The copies lie in buffers that are made once and used again: fresh memory would cost more than the copying. Beside a GPU
they are pinned and the copies only queued: the stream runs them before the next step changes anything.
"""

import copy
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

State = dict[str, Any]
"""Tensors, sharded tensors and plain values in nested dicts and lists."""


class Staging:
    """The buffers of one state, whose names and shapes never change."""

    def __init__(self) -> None:
        self._buffers: dict[tuple[object, ...], Tensor] = {}

    def copy(self, state: State) -> tuple[State, Callable[[], None]]:
        """`state` with its tensors in the buffers, and a function that waits until they are filled.

        The former copy is overwritten, so nobody may still read it. Plain values are copied too.
        """
        copied = self._copied((), state)
        if not any(tensor.is_pinned() for tensor in self._locals()):
            return copied, lambda: None
        event = torch.cuda.Event()
        event.record()
        return copied, event.synchronize

    def num_bytes(self) -> int:
        """Memory that the buffers take."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self._locals())

    def _locals(self) -> list[Tensor]:
        return [_local(buffer) for buffer in self._buffers.values()]

    def _copied(self, place: tuple[object, ...], value: Any) -> Any:
        if isinstance(value, dict):
            return {key: self._copied((*place, key), item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(self._copied((*place, number), item) for number, item in enumerate(value))
        if not isinstance(value, Tensor):
            return copy.deepcopy(value)
        value = value.detach()
        if place not in self._buffers:
            self._buffers[place] = _buffer(value)
        _local(self._buffers[place]).copy_(_local(value), non_blocking=True)
        return self._buffers[place]


def _buffer(value: Tensor) -> Tensor:
    """An empty tensor on the CPU for `value`, pinned if that is on a GPU; of a sharded one, this process's shard."""
    local = _local(value)
    empty = torch.empty_like(local, device="cpu", pin_memory=local.is_cuda)
    if not isinstance(value, DTensor):
        return empty
    sharded = value.to("cpu") if local.is_cuda else value.clone()
    cast(Any, sharded)._local_tensor = empty  # as torch's own staging does; `from_local` would move it to the GPU
    return sharded


def _local(value: Tensor) -> Tensor:
    return value.to_local() if isinstance(value, DTensor) else value
