"""Networks in ONNX files that params name, an image at a time and by one thread: a score depends on its image alone."""

from collections.abc import Iterator
from functools import lru_cache
from typing import TYPE_CHECKING

from dinov2.curation.model_file import find_model
from dinov2.params import InputError

if TYPE_CHECKING:
    import onnxruntime

ERRORS_ONLY = 3  # onnxruntime's level; below it a line is written for every weight
GRAPH, NAME, INITIALIZER, INPUT, OUTPUT, VALUE_INFO = 7, 1, 5, 11, 12, 13  # numbers of the fields in onnx.proto
TENSOR_NAME, TYPE, TENSOR_TYPE, SHAPE = 8, 2, 1, 2
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5  # wire types of protocol buffers


@lru_cache(maxsize=8)
def open_session(path: str, sha256: str, *, where: str, free_shapes: bool) -> "onnxruntime.InferenceSession":
    """The network, opened once a process. `free_shapes`: it is to take inputs of other shapes than its file says.

    Raises InputError, naming the params key `where`, if it is absent, of another sha256, or no network.
    """
    import onnxruntime  # imported in the job, not in the submitting process

    data = find_model(path, sha256, where=where).read_bytes()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = ERRORS_ONLY
    try:
        network = without_shapes(data) if free_shapes else data
        return onnxruntime.InferenceSession(network, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime raises of many kinds
        raise InputError(f"{where}.path: {path} can't be loaded ({error}); give an ONNX file") from error


def without_shapes(model: bytes) -> bytes:
    """The same network without the shapes its file gives to inputs and outputs, and with constant weights.

    Edits the protocol buffer itself: the package `onnx` is 18 MB, for this one thing.
    """
    return b"".join(
        _field(GRAPH, _free_graph(payload)) if number == GRAPH else raw for number, payload, raw in _fields(model)
    )


def _free_graph(graph: bytes) -> bytes:
    fields = list(_fields(graph))
    weights = {_first(payload, TENSOR_NAME) for number, payload, _ in fields if number == INITIALIZER}
    kept = []
    for number, payload, raw in fields:
        is_weight = number == INPUT and _first(payload, NAME) in weights  # listed as an input it could not be folded
        if number == VALUE_INFO or is_weight:
            continue
        kept.append(_field(number, _without(payload, [TYPE, TENSOR_TYPE, SHAPE])) if number in (INPUT, OUTPUT) else raw)
    return b"".join(kept)


def _without(message: bytes, path: list[int]) -> bytes:
    """The message without the field at the end of `path`."""
    first, *rest = path
    return b"".join(
        raw if number != first else _field(number, _without(payload, rest)) if rest else b""
        for number, payload, raw in _fields(message)
    )


def _first(message: bytes, wanted: int) -> bytes:
    return next((payload for number, payload, _ in _fields(message) if number == wanted), b"")


def _fields(message: bytes) -> Iterator[tuple[int, bytes, bytes]]:
    """Number, payload (of length-delimited fields, else empty) and all bytes of each field."""
    place = 0
    while place < len(message):
        start = place
        tag, place = _varint(message, place)
        payload = b""
        if tag & 7 == VARINT:
            _, place = _varint(message, place)
        elif tag & 7 == BYTES:
            length, place = _varint(message, place)
            payload = message[place : place + length]
            place += length
        elif tag & 7 in (FIXED64, FIXED32):
            place += 8 if tag & 7 == FIXED64 else 4
        else:
            raise ValueError(f"wire type {tag & 7} at byte {start}: no protocol buffer")
        yield tag >> 3, payload, message[start:place]


def _field(number: int, payload: bytes) -> bytes:
    return _encoded(number << 3 | BYTES) + _encoded(len(payload)) + payload


def _varint(message: bytes, place: int) -> tuple[int, int]:
    value = shift = 0
    while message[place] > 127:
        value |= (message[place] & 127) << shift
        place, shift = place + 1, shift + 7
    return value | message[place] << shift, place + 1


def _encoded(value: int) -> bytes:
    low, rest = value & 127, value >> 7
    return bytes([low]) if not rest else bytes([low | 128]) + _encoded(rest)
