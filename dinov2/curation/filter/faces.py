"""Where faces are: CenterFace (arXiv 1911.03599, MIT) in an ONNX file.

The network gives, for each cell of 4 x 4 pixels, how likely a face's centre lies there, how far from the cell's middle,
and the logarithm of the face's height and width in cells. The image is shrunk to a fixed longer side, never enlarged.
"""

from typing import TYPE_CHECKING, Annotated

import numpy as np
from jaxtyping import Float32, Float64, Int64, UInt8
from PIL import Image
from pydantic import Field

from dinov2.curation.onnx_session import open_session
from dinov2.params import Params

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

CELL_PX = 4
MULTIPLE_PX = 32  # the network halves its input five times
MAX_OVERLAP = 0.3  # intersection over union above which the weaker of two boxes is the same face


class FacesParams(Params):
    """How faces are found, and what becomes of them."""

    path: str
    """ONNX file of CenterFace, or package:<distribution>/<file inside>."""
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    """Of that file."""
    detect_px: Annotated[int, Field(ge=64, le=4096)]
    """Longer side of what the network sees; larger images are shrunk to it."""
    min_score: Annotated[float, Field(gt=0, lt=1)]
    """Faces that score less are none."""
    min_face_px: Annotated[int, Field(ge=1)]
    """Shorter side of a face's box, in the image itself; smaller faces identify nobody and stay."""
    margin_share: Annotated[float, Field(ge=0, le=1)]
    """A box is widened on each side by this share of its longer side, for hair, ears and chin."""
    sigma_share: Annotated[float, Field(gt=0, le=1)]
    """Standard deviation of the blur, as a share of the box's longer side."""
    jpeg_quality: Annotated[int, Field(ge=50, le=100)]
    """Of a blurred image, which is encoded anew."""


def open_faces(params: FacesParams) -> "InferenceSession":
    """The network, opened once a process. Raises InputError if it is absent or another one."""
    return open_session(params.path, params.sha256, where="filter.faces", free_shapes=True)


def find_faces(image: UInt8[np.ndarray, "h w 3"], params: FacesParams) -> Float64[np.ndarray, "n 4"]:
    """Boxes (left, top, right, bottom) in pixels of `image`, the likeliest first."""
    session = open_faces(params)
    seen, scale = preprocess(image, params.detect_px)
    heat, log_size, offset = (np.asarray(out) for out in session.run(None, {session.get_inputs()[0].name: seen})[:3])
    boxes, scores = decode_boxes(heat[0, 0], log_size[0], offset[0], params.min_score)
    height, width = image.shape[:2]
    boxes = boxes[suppress(boxes, scores)] / scale
    boxes = np.clip(boxes, 0, [width, height, width, height])
    sides = np.minimum(boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1])
    return boxes[sides >= params.min_face_px]


def preprocess(
    image: UInt8[np.ndarray, "h w 3"], longer_px: int
) -> tuple[Float32[np.ndarray, "1 3 a b"], Float64[np.ndarray, "4"]]:
    """What the network takes (RGB from 0 to 255, black where it is filled up), and its scale a box coordinate."""
    height, width = image.shape[:2]
    factor = min(1.0, longer_px / max(height, width))
    small_w, small_h = max(1, round(width * factor)), max(1, round(height * factor))
    small = Image.fromarray(image)
    if (small_w, small_h) != (width, height):
        small = small.resize((small_w, small_h), Image.Resampling.BILINEAR)
    filled = np.zeros((1, 3, -(-small_h // MULTIPLE_PX) * MULTIPLE_PX, -(-small_w // MULTIPLE_PX) * MULTIPLE_PX))
    filled[0, :, :small_h, :small_w] = np.asarray(small).transpose(2, 0, 1)
    return filled.astype(np.float32), np.array([small_w / width, small_h / height] * 2)


def decode_boxes(
    heat: Float32[np.ndarray, "a b"],
    log_size: Float32[np.ndarray, "2 a b"],
    offset: Float32[np.ndarray, "2 a b"],
    min_score: float,
) -> tuple[Float64[np.ndarray, "n 4"], Float64[np.ndarray, " n"]]:
    """Boxes and scores of the cells that hold a face's centre. Both maps have the vertical channel first."""
    row, column = np.nonzero(heat >= min_score)
    height, width = np.exp(log_size[:, row, column].astype(np.float64)) * CELL_PX
    y = (row + offset[0, row, column].astype(np.float64) + 0.5) * CELL_PX
    x = (column + offset[1, row, column].astype(np.float64) + 0.5) * CELL_PX
    boxes = np.stack([x - width / 2, y - height / 2, x + width / 2, y + height / 2], axis=1)
    return boxes, heat[row, column].astype(np.float64)


def suppress(boxes: Float64[np.ndarray, "n 4"], scores: Float64[np.ndarray, " n"]) -> Int64[np.ndarray, " m"]:
    """Indices of the boxes to keep, the likeliest first: none overlaps a likelier one much."""
    kept: list[int] = []
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    pending = np.argsort(-scores, kind="stable")
    while len(pending):
        best, pending = int(pending[0]), pending[1:]
        kept.append(best)
        low = np.maximum(boxes[best, :2], boxes[pending, :2])
        high = np.minimum(boxes[best, 2:], boxes[pending, 2:])
        shared = np.clip(high - low, 0, None).prod(axis=1)
        pending = pending[shared <= MAX_OVERLAP * (areas[best] + areas[pending] - shared)]
    return np.array(kept, np.int64)
