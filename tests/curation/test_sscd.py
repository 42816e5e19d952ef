"""SSCD from TorchScript and from ONNX: the same preprocessing, and no silent other descriptor."""

import hashlib
import struct
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from dinov2.curation.params import SSCDParams
from dinov2.curation.sscd import SSCD
from dinov2.params import InputError

CPU = torch.device("cpu")


class ChannelMeans(torch.nn.Module):
    """Stands for the network: the mean of each channel of its normalised input."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.mean(dim=(2, 3))


def field(number: int, value: bytes | int) -> bytes:
    """One field of a protocol buffer."""
    if isinstance(value, int):
        return bytes([number << 3, value])
    assert len(value) < 16384
    length = bytes([len(value)]) if len(value) < 128 else bytes([len(value) & 127 | 128, len(value) >> 7])
    return bytes([number << 3 | 2]) + length + value


def onnx_channel_means(element_type: int = 1) -> bytes:
    """ChannelMeans as an ONNX model, written by hand: GlobalAveragePool, then Flatten. Element type 1 is float."""

    def tensor(name: bytes, *dims: bytes) -> bytes:
        shape = b"".join(field(1, field(2, dim)) for dim in dims)
        return field(1, name) + field(2, field(1, field(1, element_type) + field(2, shape)))

    pool = field(1, b"x") + field(2, b"p") + field(4, b"GlobalAveragePool")
    flatten = field(1, b"p") + field(2, b"y") + field(4, b"Flatten")
    entry, exit_ = tensor(b"x", b"n", b"c", b"h", b"w"), tensor(b"y", b"n", b"c")
    graph = field(1, pool) + field(1, flatten) + field(2, b"g") + field(11, entry) + field(12, exit_)
    return field(1, 8) + field(8, field(1, b"") + field(2, 13)) + field(7, graph)


@pytest.fixture(scope="module")
def torchscript(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sscd") / "sscd.pt"
    with warnings.catch_warnings():  # torch deprecates making such files; SSCD is released as one
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.trace(ChannelMeans(), torch.zeros(1, 3, 32, 32)), str(path))
    return path


def params(path: Path, **changes: str | int) -> SSCDParams:
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else "0" * 64
    values = {"kind": "sscd", "path": str(path), "sha256": sha256, "resize": "square", "size_px": 64}
    return SSCDParams.model_validate(values | changes)


def test_descriptor_is_the_networks_output_of_the_normalised_image(torchscript: Path) -> None:
    encoder = SSCD(params(torchscript), batch_size=2, device=CPU)
    image = np.full((90, 120, 3), (200, 100, 50), np.uint8)
    encoded = encoder.encode([encoder.prepare(image)] * 3)
    expected = (np.array([200, 100, 50]) / 255 - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225)
    np.testing.assert_allclose(encoded, np.tile(expected, (3, 1)), atol=1e-4)
    finished = encoder.finish(encoded)
    np.testing.assert_allclose(finished[0], expected / np.linalg.norm(expected), atol=1e-4)


def test_onnx_equals_torchscript(torchscript: Path, tmp_path: Path) -> None:
    path = tmp_path / "sscd.onnx"
    path.write_bytes(onnx_channel_means())
    image = np.random.default_rng(0).integers(0, 255, (80, 100, 3), np.uint8)
    ours, theirs = (SSCD(params(file), batch_size=4, device=CPU) for file in (torchscript, path))
    np.testing.assert_allclose(
        ours.encode([ours.prepare(image)] * 2), theirs.encode([theirs.prepare(image)] * 2), atol=1e-4
    )


def test_short_side_keeps_the_aspect(torchscript: Path) -> None:
    encoder = SSCD(params(torchscript, resize="short_side", size_px=288), batch_size=4, device=CPU)
    wide, tall = (encoder.prepare(np.zeros(shape, np.uint8)) for shape in ((100, 150, 3), (150, 100, 3)))
    assert (wide.shape, tall.shape) == ((3, 288, 432), (3, 432, 288))
    assert encoder.encode([wide, tall]).shape == (2, 3)


def test_absent_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"sscd\.pt does not exist"):
        SSCD(params(tmp_path / "sscd.pt"), batch_size=1, device=CPU)


def test_another_file_is_refused(torchscript: Path) -> None:
    with pytest.raises(InputError, match="has sha256"):
        SSCD(params(torchscript, sha256="1" * 64), batch_size=1, device=CPU)


@pytest.mark.parametrize("name", ["junk.pt", "junk.onnx", "junk.bin"])
def test_file_of_another_kind_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(struct.pack("<4f", 1, 2, 3, 4))
    with pytest.raises(InputError, match="junk"):
        SSCD(params(tmp_path / name), batch_size=1, device=CPU)


def test_onnx_that_takes_bytes_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bytes.onnx"
    path.write_bytes(onnx_channel_means(element_type=10))  # float16: valid, but not what is fed
    with pytest.raises(InputError, match="not normalised floats"):
        SSCD(params(path), batch_size=1, device=CPU)
