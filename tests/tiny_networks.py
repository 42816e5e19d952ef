"""Networks of a few weights in ONNX files, that stand for open_nsfw and CenterFace: same inputs, same outputs.

Written as protocol buffers by hand, since the package `onnx` is no dependency; field numbers are those of onnx.proto.
"""

import hashlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

FLOAT, INT, INTS = 1, 2, 7


def write_nsfw(path: Path) -> str:
    """A network that finds reddish images unsafe; returns its sha256."""
    weights = np.array([[0, -1], [0, -1], [0, 2]], np.float32) * 0.1  # blue, green, red
    nodes = [
        node("MatMul", ["x", "w"], "a"),
        node("ReduceMean", ["a"], "m", axes=[1, 2], keepdims=0),
        node("Softmax", ["m"], "y", axis=-1),
    ]
    return save(path, nodes, {"w": weights}, ("x", [1, 224, 224, 3]), {"y": [1, 2]})


def write_faces(path: Path) -> str:
    """A network that finds a face of 24 px, as a box is wide, in every cell that is green; returns its sha256."""
    green = np.zeros((1, 3, 4, 4), np.float32)
    green[:, 0], green[:, 1], green[:, 2] = -1 / 16 / 255, 1 / 16 / 255, -1 / 16 / 255
    weights = {
        "green": green,
        "none": np.zeros((2, 3, 4, 4), np.float32),
        "log6": np.full(2, np.log(6), np.float32),
        "zero": np.zeros(2, np.float32),
    }
    window = {"kernel_shape": [4, 4], "strides": [4, 4]}
    nodes = [
        node("Conv", ["x", "green"], "heat", **window),
        node("Conv", ["x", "none", "log6"], "size", **window),
        node("Conv", ["x", "none", "zero"], "offset", **window),
    ]
    outputs = {"heat": [10, 1, 8, 8], "size": [10, 2, 8, 8], "offset": [10, 2, 8, 8]}
    return save(path, nodes, weights, ("x", [10, 3, 32, 32]), outputs)


def node(kind: str, inputs: list[str], output: str, **attributes: int | list[int]) -> bytes:
    fields = [field(1, name.encode()) for name in inputs] + [field(2, output.encode()), field(4, kind.encode())]
    for name, value in attributes.items():
        number = number_field(3, value) if isinstance(value, int) else b"".join(number_field(8, v) for v in value)
        about = number_field(20, INT if isinstance(value, int) else INTS)
        fields.append(field(5, field(1, name.encode()) + number + about))
    return b"".join(fields)


def save(
    path: Path,
    nodes: list[bytes],
    weights: dict[str, NDArray[np.float32]],
    given: tuple[str, list[int]],
    outputs: dict[str, list[int]],
) -> str:
    graph = [field(1, body) for body in nodes] + [field(2, b"tiny")]
    graph += [field(5, tensor(name, values)) for name, values in weights.items()]
    graph += [field(11, shaped(name, list(values.shape))) for name, values in weights.items()]  # as old files have them
    graph += [field(11, shaped(*given))] + [field(12, shaped(name, shape)) for name, shape in outputs.items()]
    data = number_field(1, 8) + field(8, number_field(2, 13)) + field(7, b"".join(graph))
    path.write_bytes(data)
    return hashlib.sha256(data).hexdigest()


def tensor(name: str, values: NDArray[np.float32]) -> bytes:
    dims = b"".join(number_field(1, size) for size in values.shape)
    return dims + number_field(2, FLOAT) + field(8, name.encode()) + field(9, values.tobytes())


def shaped(name: str, shape: list[int]) -> bytes:
    dims = b"".join(field(1, number_field(1, size)) for size in shape)
    return field(1, name.encode()) + field(2, field(1, number_field(1, FLOAT) + field(2, dims)))


def field(number: int, body: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(body)) + body


def number_field(number: int, value: int) -> bytes:
    return varint(number << 3) + varint(value % 2**64)


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])
