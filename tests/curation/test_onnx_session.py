"""ONNX files: shapes set free, one thread, one session a process."""

from pathlib import Path

import numpy as np
import pytest
from tiny_networks import write_faces, write_nsfw

from dinov2.curation.onnx_session import open_session, without_shapes


def test_network_of_fixed_shape_takes_others_once_set_free(tmp_path: Path) -> None:
    path = tmp_path / "faces.onnx"
    sha256 = write_faces(path)
    fixed = open_session(str(path), sha256, where="filter.faces", free_shapes=False)
    image = np.zeros((1, 3, 64, 96), np.float32)
    image[:, 1, 8:12, 20:24] = 255
    with pytest.raises(Exception, match="invalid dimensions"):
        fixed.run(None, {"x": image})
    free = open_session(str(path), sha256, where="filter.faces", free_shapes=True)
    assert [given.name for given in free.get_inputs()] == ["x"]  # and no weights
    heat, size, offset = (np.asarray(out) for out in free.run(None, {"x": image}))
    assert heat.shape == (1, 1, 16, 24)
    np.testing.assert_allclose(np.argwhere(heat[0, 0] > 0.5), [[2, 5]])
    np.testing.assert_allclose(np.exp(size), 6, rtol=1e-6)
    assert not offset.any()


def test_free_network_gives_the_same_numbers(tmp_path: Path) -> None:
    path = tmp_path / "nsfw.onnx"
    sha256 = write_nsfw(path)
    image = np.random.default_rng(0).random((1, 224, 224, 3), np.float32)
    fixed, free = (open_session(str(path), sha256, where="filter.nsfw", free_shapes=free) for free in (False, True))
    np.testing.assert_allclose(*(np.asarray(net.run(None, {"x": image})[0]) for net in (fixed, free)), rtol=1e-6)
    assert open_session(str(path), sha256, where="filter.nsfw", free_shapes=True) is free


def test_damaged_file_is_no_protocol_buffer() -> None:
    with pytest.raises((ValueError, IndexError)):
        without_shapes(b"\x0f\xff")
