"""The fixed view of an image that evaluation, embedding and monitors take, and the scale that networks expect."""

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn.functional import interpolate

MEAN = (0.485, 0.456, 0.406)  # of ImageNet, RGB
STD = (0.229, 0.224, 0.225)
RESIZE_RATIO = 256 / 224  # shorter side to crop side, of the usual evaluation


def center_crop(image: UInt8[np.ndarray, "h w 3"], size_px: int) -> UInt8[Tensor, "3 s s"]:
    """The middle `size_px` square after the shorter side was resized (bicubic, antialiased) to size_px * 256 / 224."""
    height, width = image.shape[:2]
    short_px = round(size_px * RESIZE_RATIO)
    long_px = int(max(height, width) * short_px / min(height, width))
    size = (short_px, long_px) if height <= width else (long_px, short_px)
    pixels = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1).unsqueeze(0)  # channels last in memory
    resized = interpolate(pixels, size=size, mode="bicubic", antialias=True)[0]
    top, left = round((size[0] - size_px) / 2), round((size[1] - size_px) / 2)
    return resized[:, top : top + size_px, left : left + size_px].contiguous()


def normalise(images: UInt8[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
    """Bytes to floats of about zero mean and unit variance (ImageNet's statistics)."""
    mean = torch.tensor(MEAN, device=images.device).view(1, 3, 1, 1)
    std = torch.tensor(STD, device=images.device).view(1, 3, 1, 1)
    return (images.float() / 255 - mean) / std
