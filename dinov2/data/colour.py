"""Colour jitter, grayscale, blur, solarisation and normalisation of a batch of crops, each crop with its own strengths.

Pure tensor operations in fp32, the same on every device. They follow torchvision's on floats: every change is clamped
to [0, 1], contrast blends with the crop's mean gray, hue turns in HSV. Which crops a change touches is decided on the
CPU, where the draws lie, so that a GPU is never waited for.
"""

from itertools import permutations
from typing import NamedTuple

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor
from torch.nn.functional import conv2d, pad

from dinov2.data.view import MEAN, STD

GRAY = (0.2989, 0.587, 0.114)  # weights of R, G, B in luminance (ITU-R 601)
BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)
ORDERS = torch.tensor(list(permutations(range(4))))  # [24 4]
BLUR_RADIUS_PX = 4  # a kernel of 9 at every crop size, as the reference
SOLARIZE_THRESHOLD = 128 / 255


class Colours(NamedTuple):
    """How the colours of n crops change; always on the CPU. What does not apply to a crop has its neutral value."""

    factors: Float[Tensor, "n 4"]
    """Brightness, contrast, saturation (1: none) and hue in turns (0: none)."""
    order: Int[Tensor, " n"]
    """Which of the 24 orders the four changes have."""
    gray: Float[Tensor, " n"]
    """1: without colour."""
    sigma_px: Float[Tensor, " n"]
    """Of the blur; 0: none."""
    solarize: Float[Tensor, " n"]
    """1: bright values are inverted."""


def recolour(crops: UInt8[Tensor, "n 3 h w"], colours: Colours) -> Float[Tensor, "n 3 h w"]:
    """Crops with their colours changed, normalised by ImageNet's statistics."""
    device = crops.device
    x = crops.float().div_(255)
    jitter(x, colours.factors, colours.order)
    grays = _where(colours.gray > 0, device)
    if len(grays):
        x[grays] = to_gray(x[grays]).expand(-1, 3, -1, -1)
    blurred = colours.sigma_px > 0
    if blurred.any():
        rows = _where(blurred, device)
        x[rows] = gaussian_blur(x[rows], colours.sigma_px[blurred].to(device))
    solarized = _where(colours.solarize > 0, device)
    if len(solarized):
        bright = x[solarized]
        x[solarized] = torch.where(bright >= SOLARIZE_THRESHOLD, 1 - bright, bright)
    mean = torch.tensor(MEAN, device=device).view(3, 1, 1)
    std = torch.tensor(STD, device=device).view(3, 1, 1)
    return x.sub_(mean).div_(std)


def jitter(x: Float[Tensor, "n 3 h w"], factors: Float[Tensor, "n 4"], order: Int[Tensor, " n"]) -> None:
    """Change brightness, contrast, saturation and hue of every crop in its own order; x, in [0, 1], in place.

    The first three all blend with another image (black, the crop's mean gray, the crop's gray), so that each of the
    four places is one blend of all crops, and a turn of hue of those that have it there.
    """
    for place in range(4):
        change = ORDERS[order, place]  # [n]
        blends = change != HUE
        factor = torch.where(blends, factors.gather(1, change[:, None])[:, 0], 1.0)
        gray_part = torch.where(change == SATURATION, 1 - factor, 0.0)
        mean_part = torch.where(change == CONTRAST, 1 - factor, 0.0)
        factor, gray_part, mean_part = torch.stack([factor, gray_part, mean_part]).to(x.device).view(3, -1, 1, 1, 1)
        gray = to_gray(x)
        mean = gray.mean(dim=(2, 3), keepdim=True)
        x.mul_(factor).add_(gray.mul_(gray_part).add_(mean.mul_(mean_part))).clamp_(0, 1)
        turned = ~blends & (factors[:, HUE] != 0)
        if turned.any():
            rows = _where(turned, x.device)
            x[rows] = turn_hue(x[rows], factors[turned, HUE].to(x.device))


def turn_hue(x: Float[Tensor, "n 3 h w"], turns: Float[Tensor, " n"]) -> Float[Tensor, "n 3 h w"]:
    """Crops whose hue is moved by `turns` (1 is once round the circle); value and saturation of HSV stay."""
    red, green, blue = x.unbind(1)  # [n h w]
    value = x.amax(dim=1)
    chroma = value - x.amin(dim=1)
    safe = torch.where(chroma > 0, chroma, 1.0)
    hue = torch.where(  # in sixths of the circle, from 0 (red) upwards
        value == red,
        (green - blue) / safe,
        torch.where(value == green, 2 + (blue - red) / safe, 4 + (red - green) / safe),
    ) + 6 * turns.view(-1, 1, 1)
    offsets = torch.tensor([5.0, 3.0, 1.0], device=x.device).view(1, 3, 1, 1)
    sixth = torch.remainder(hue.unsqueeze(1) + offsets, 6)  # [n 3 h w]
    return value.unsqueeze(1) - chroma.unsqueeze(1) * torch.minimum(sixth, 4 - sixth).clamp_(0, 1)


def to_gray(x: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n 1 h w"]:
    """Luminance."""
    red, green, blue = x.split(1, dim=1)
    return (GRAY[0] * red).add_(green, alpha=GRAY[1]).add_(blue, alpha=GRAY[2])


def gaussian_blur(x: Float[Tensor, "n 3 h w"], sigma_px: Float[Tensor, " n"]) -> Float[Tensor, "n 3 h w"]:
    """Crops blurred by a Gaussian of 9 x 9 pixels, mirrored at the edges; sides must exceed 4 px."""
    num, channels, height, width = x.shape
    distance = torch.arange(-BLUR_RADIUS_PX, BLUR_RADIUS_PX + 1, device=x.device)
    weights = torch.exp(-0.5 * (distance / sigma_px[:, None]) ** 2)  # [n 9]
    weights = (weights / weights.sum(dim=1, keepdim=True)).repeat_interleave(channels, dim=0)
    planes = num * channels
    x = pad(x, (BLUR_RADIUS_PX,) * 4, mode="reflect").view(1, planes, height + 8, width + 8)
    x = conv2d(x, weights.view(planes, 1, 1, -1), groups=planes)
    return conv2d(x, weights.view(planes, 1, -1, 1), groups=planes).view(num, channels, height, width)


def _where(chosen: Tensor, device: torch.device) -> Tensor:
    return chosen.nonzero()[:, 0].to(device, non_blocking=True)
