"""Copy descriptors by SSCD (arXiv 2202.10261), from its released TorchScript or an ONNX file.

Preprocessing as published: bilinear antialiased resize (shorter side to 288, or a 320 px square), ImageNet
normalisation; the 512-d output is made of unit length. There is no other descriptor to fall back to: a file that is
absent or another one is an error.
"""

from dinov2.curation.params import NetworkParams, SSCDParams
from dinov2.data.view import MEAN, STD


def published(params: SSCDParams) -> NetworkParams:
    """SSCD as a network in a file, with the preprocessing it was published with."""
    normalised = params.input == "float_nchw"
    return NetworkParams(
        kind="onnx" if params.path.endswith(".onnx") else "torchscript",
        path=params.path,
        sha256=params.sha256,
        resize=params.resize,
        size_px=params.size_px,
        interpolation="bilinear",
        crop_px=None,
        input=params.input,
        mean=MEAN if normalised else None,
        std=STD if normalised else None,
    )
