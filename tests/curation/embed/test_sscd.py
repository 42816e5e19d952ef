"""SSCD from TorchScript and from ONNX: the same preprocessing, and no silent other descriptor."""

import hashlib
import struct
import threading
import warnings
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from pydantic import ValidationError

from dinov2.curation.embed.network import Network
from dinov2.curation.embed.sscd import published
from dinov2.curation.model_file import find_model
from dinov2.curation.params import NetworkParams, SSCDParams
from dinov2.params import InputError

FLOAT, UINT8 = 1, 2  # ONNX's numbers of element types


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


INT, INTS = b"\xa0\x01\x02", b"\xa0\x01\x07"  # an attribute's field 20, its type


def value(name: bytes, element_type: int, *dims: bytes | int) -> bytes:
    """A ValueInfo: a tensor's name, element type, and dimensions by name or size."""
    shape = b"".join(field(1, field(2, dim) if isinstance(dim, bytes) else field(1, dim)) for dim in dims)
    return field(1, name) + field(2, field(1, field(1, element_type) + field(2, shape)))


def onnx(nodes: list[bytes], entry: bytes, element_type: int) -> bytes:
    """A model, written by hand, with output y."""
    graph = b"".join(field(1, node) for node in nodes) + field(2, b"g") + field(11, entry)
    graph += field(12, value(b"y", element_type, b"n", b"c"))
    return field(1, 8) + field(8, field(1, b"") + field(2, 13)) + field(7, graph)


def node(kind: bytes, input_: bytes, output: bytes, *attributes: bytes) -> bytes:
    return field(1, input_) + field(2, output) + field(4, kind) + b"".join(field(5, about) for about in attributes)


def onnx_channel_means(element_type: int = 1, batch: bytes | int = b"n") -> bytes:
    """ChannelMeans as an ONNX model."""
    nodes = [node(b"GlobalAveragePool", b"x", b"p"), node(b"Flatten", b"p", b"y")]
    return onnx(nodes, value(b"x", element_type, batch, b"c", b"h", b"w"), element_type)


def onnx_byte_means() -> bytes:
    """The mean of each channel of bytes with channels last."""
    to_float = field(1, b"to") + field(3, FLOAT) + INT
    axes = field(1, b"axes") + field(8, 1) + field(8, 2) + INTS
    keep = field(1, b"keepdims") + field(3, 0) + INT
    nodes = [node(b"Cast", b"x", b"f", to_float), node(b"ReduceMean", b"f", b"y", axes, keep)]
    return onnx(nodes, value(b"x", UINT8, b"n", b"h", b"w", 3), FLOAT)


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
    return SSCDParams.model_validate(values | {"input": "float_nchw"} | changes)


def sscd(params: SSCDParams, device: str = "cpu") -> Network:
    turn = threading.Lock() if device == "cuda" else nullcontext()
    return Network(published(params), device=torch.device(device), turn=turn, where="embed.copy_descriptor")


def pictures() -> list[NDArray[np.uint8]]:
    """Of two shapes, mixed."""
    rng = np.random.default_rng(0)
    return [rng.integers(0, 255, (80, 100 + 50 * (i % 2), 3), np.uint8) for i in range(5)]


def encoded(network: Network, images: list[NDArray[np.uint8]]) -> NDArray[np.float32]:
    return network.encode([network.prepare(image) for image in images])


def test_descriptor_is_the_networks_output_of_the_normalised_image(torchscript: Path) -> None:
    image = np.full((90, 120, 3), (200, 100, 50), np.uint8)
    expected = (np.array([200, 100, 50]) / 255 - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225)
    np.testing.assert_allclose(encoded(sscd(params(torchscript)), [image] * 3), np.tile(expected, (3, 1)), atol=1e-4)


def test_onnx_equals_torchscript(torchscript: Path, tmp_path: Path) -> None:
    path = tmp_path / "sscd.onnx"
    path.write_bytes(onnx_channel_means())
    ours, theirs = (encoded(sscd(params(file)), pictures()) for file in (torchscript, path))
    np.testing.assert_allclose(ours, theirs, atol=1e-4)


def test_images_of_several_shapes_keep_their_order(torchscript: Path) -> None:
    network = sscd(params(torchscript, resize="short_side"))
    together = encoded(network, pictures())
    one_by_one = np.concatenate([encoded(network, [image]) for image in pictures()])
    np.testing.assert_allclose(together, one_by_one, atol=1e-5)
    assert len(np.unique(together.round(5), axis=0)) == 5


def test_network_that_takes_one_image_at_a_time_gets_them_so(torchscript: Path, tmp_path: Path) -> None:
    path = tmp_path / "one.onnx"
    path.write_bytes(onnx_channel_means(batch=1))
    network = sscd(params(path))
    assert network.max_batch == 1
    np.testing.assert_allclose(encoded(network, pictures()), encoded(sscd(params(torchscript)), pictures()), atol=1e-4)


def test_onnx_that_takes_bytes_gets_bytes_with_channels_last(tmp_path: Path) -> None:
    path = tmp_path / "bytes.onnx"
    path.write_bytes(onnx_byte_means())
    image = np.full((90, 120, 3), (200, 100, 50), np.uint8)
    found = encoded(sscd(params(path, input="uint8_nhwc")), [image] * 2)
    np.testing.assert_allclose(found, [[200, 100, 50]] * 2, atol=0.5)


def test_short_side_keeps_the_aspect(torchscript: Path) -> None:
    network = sscd(params(torchscript, resize="short_side", size_px=288))
    shapes = ((100, 150, 3), (150, 100, 3), (7, 11, 3))
    views = [network.prepare(np.zeros(shape, np.uint8)) for shape in shapes]
    assert [tuple(view.shape) for view in views] == [(3, 288, 432), (3, 432, 288), (3, 288, 452)]


def test_absent_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"sscd\.pt does not exist"):
        sscd(params(tmp_path / "sscd.pt"))


def test_another_file_is_refused(torchscript: Path) -> None:
    with pytest.raises(InputError, match="has sha256"):
        sscd(params(torchscript, sha256="1" * 64))


@pytest.mark.parametrize("name", ["junk.pt", "junk.onnx", "junk.bin"])
def test_file_of_another_kind_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(struct.pack("<4f", 1, 2, 3, 4))
    with pytest.raises(InputError, match="junk"):
        sscd(params(tmp_path / name))


def test_file_that_takes_something_else_is_refused(tmp_path: Path, torchscript: Path) -> None:
    path = tmp_path / "half.onnx"
    path.write_bytes(onnx_channel_means(element_type=10))  # float16: valid, but not what is fed
    with pytest.raises(InputError, match=r"takes tensor\(float16\), not tensor\(float\)"):
        sscd(params(path))
    with pytest.raises(InputError, match="does not take such images"):
        sscd(params(torchscript, input="uint8_nhwc"))  # means of bytes are not defined


def test_model_of_a_package_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, torchscript: Path) -> None:
    (tmp_path / "some_models").mkdir()
    (tmp_path / "some_models" / "sscd.pt").write_bytes(torchscript.read_bytes())
    (tmp_path / "some_models-1.0.dist-info").mkdir()
    (tmp_path / "some_models-1.0.dist-info" / "METADATA").write_text("Name: some-models\nVersion: 1.0\n")
    monkeypatch.syspath_prepend(tmp_path)
    right = params(torchscript).sha256
    found = find_model("package:some-models/some_models/sscd.pt", right, where="embed.copy_descriptor")
    assert found == tmp_path / "some_models" / "sscd.pt"
    with pytest.raises(InputError, match="package 'other-models' is not installed"):
        find_model("package:other-models/sscd.pt", right, where="embed.copy_descriptor")
    with pytest.raises(InputError, match=r"copy_descriptor\.path: package:some-models/absent\.pt does not exist"):
        find_model("package:some-models/absent.pt", right, where="embed.copy_descriptor")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mean": None, "std": None}, "mean and std belong to float_nchw"),
        ({"input": "uint8_nhwc"}, "null for uint8_nhwc"),
        ({"std": (0.2, 0.0, 0.2)}, "give numbers above 0"),
        ({"crop_px": 65}, "crop_px is 65, above the size_px of 64"),
    ],
)
def test_params_that_contradict_each_other_are_refused(torchscript: Path, changes: dict, message: str) -> None:
    values = published(params(torchscript)).model_dump() | changes
    with pytest.raises(ValidationError, match=message):
        NetworkParams.model_validate(values)


@pytest.mark.gpu
def test_gpu_equals_cpu(torchscript: Path, tmp_path: Path) -> None:
    path = tmp_path / "sscd.onnx"
    path.write_bytes(onnx_channel_means())
    expected = encoded(sscd(params(torchscript)), pictures())
    for file in (torchscript, path):
        np.testing.assert_allclose(encoded(sscd(params(file), "cuda"), pictures()), expected, atol=1e-3)
