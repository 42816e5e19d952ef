"""Memory is used again exactly when no tensor has it any more."""

import torch

from dinov2.data.memory import Recycled


def test_recycled_memory_is_used_again_when_it_is_free() -> None:
    memory = Recycled()
    tensor = memory.empty((3, 5), torch.float32)
    assert tensor.shape == (3, 5)
    assert tensor.dtype == torch.float32
    place = tensor.data_ptr()
    del tensor
    assert memory.empty((15,), torch.float32).data_ptr() == place
    assert memory.empty((60,), torch.uint8).data_ptr() == place


def test_recycled_memory_is_not_given_twice() -> None:
    memory = Recycled()
    tensors = [memory.empty((4, 4), torch.uint8) for _ in range(5)]
    assert len({tensor.data_ptr() for tensor in tensors}) == 5


def test_recycled_memory_is_kept_by_views_and_arrays() -> None:
    memory = Recycled()
    view = memory.empty((4, 4), torch.float32)[1:, 2]
    array = memory.empty((4, 4), torch.float32).numpy()[0]
    detached = memory.empty((4, 4), torch.float32).detach().flatten(0, 1)
    places = {memory.empty((4, 4), torch.float32).data_ptr() for _ in range(3)}
    assert view.data_ptr() - 4 * 6 not in places
    assert array.ctypes.data not in places
    assert detached.data_ptr() not in places


def test_recycled_memory_of_nothing() -> None:
    assert Recycled().empty((0, 3), torch.float32).shape == (0, 3)
