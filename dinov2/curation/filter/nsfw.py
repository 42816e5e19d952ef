"""How unsafe for work an image looks: the score of open_nsfw (a thin ResNet-50, BSD-2), in an ONNX file.

Preprocessing as published: to 256 x 256, whatever the aspect, through JPEG (the network learned from such files, and
scores move by up to 0.2 without), the centre of 224, blue first, less the channels' means.
"""

import io
from typing import TYPE_CHECKING, Annotated

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image
from pydantic import Field

from dinov2.curation.onnx_session import open_session
from dinov2.params import Params

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

RESIZED_PX = 256
CROP_PX = 224
MEAN_BGR = (104.0, 117.0, 123.0)


class NsfwParams(Params):
    """The network, and the score from which an image is dropped."""

    path: str
    """ONNX file of open_nsfw, or package:<distribution>/<file inside>."""
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    """Of that file."""
    max_score: Annotated[float, Field(ge=0, le=1)]
    """Images that score above this are dropped."""


def open_nsfw(params: NsfwParams) -> "InferenceSession":
    """The network, opened once a process. Raises InputError if it is absent or another one."""
    return open_session(params.path, params.sha256, where="filter.nsfw", free_shapes=False)


def nsfw_score(image: UInt8[np.ndarray, "h w 3"], params: NsfwParams) -> float:
    """Between 0 (safe) and 1."""
    session = open_nsfw(params)
    (scores,) = session.run(None, {session.get_inputs()[0].name: preprocess(image)[None]})
    return float(np.asarray(scores)[0, 1])


def preprocess(image: UInt8[np.ndarray, "h w 3"]) -> Float32[np.ndarray, "224 224 3"]:
    """What the network takes."""
    resized = Image.fromarray(image).resize((RESIZED_PX, RESIZED_PX), Image.Resampling.BILINEAR)
    edge = (RESIZED_PX - CROP_PX) // 2
    buffer = io.BytesIO()
    resized.save(buffer, "JPEG")
    crop = np.asarray(Image.open(buffer))[edge : edge + CROP_PX, edge : edge + CROP_PX]
    return crop[..., ::-1].astype(np.float32) - np.array(MEAN_BGR, np.float32)
