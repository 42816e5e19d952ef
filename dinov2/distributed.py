"""Which process of how many this is, and how processes find each other. One process needs no process group."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import torch
import torch.distributed as dist

LOST = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "Connection refused")  # gloo's words


class ProcessLostError(RuntimeError):
    """Another process of the job ended, so that this one can't go on."""


def rank() -> int:
    """This process's number, 0 where there is only one."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """How many processes work together, 1 where no process group was set up."""
    return dist.get_world_size() if dist.is_initialized() else 1


def local_device() -> torch.device:
    """The GPU of this process if it was given one, else the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    torch.cuda.set_device(device)
    return device


@contextmanager
def process_group(device: torch.device) -> Iterator[None]:
    """A process group for the body, if the launcher set WORLD_SIZE above 1: gloo on a CPU, nccl on a GPU."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        yield
        return
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield
    except RuntimeError as error:
        if any(sign in str(error) for sign in LOST):
            raise ProcessLostError(
                f"process {rank()} of {world_size()} lost another one, which ended without a word (killed, or out of "
                "memory?); start the job again, it goes on from its last checkpoint"
            ) from error
        raise
    finally:
        dist.destroy_process_group()


def own_group() -> dist.ProcessGroup | None:
    """A gloo group of all processes for one user, whose collectives never mix with anyone else's; None for one process.

    To be called by all processes together.
    """
    return cast(dist.ProcessGroup, dist.new_group(backend="gloo")) if world_size() > 1 else None


def all_reduce_sum(values: torch.Tensor) -> torch.Tensor:
    """Sum of `values` over all processes, in place; the same tensor where there is one process."""
    if world_size() > 1:
        dist.all_reduce(values)
    return values
