"""Colour jitter, grayscale, blur, solarisation and normalisation of a batch of crops, each crop with its own strengths.

Pure tensor operations in fp32, the same on every device. They follow torchvision's on floats: every change is clamped
to [0, 1], contrast blends with the crop's mean gray, hue turns in HSV. Which crops a change touches is decided on the
CPU, where the draws lie, so that a GPU is never waited for.

The cost is memory traffic and, on a CPU, comparisons and gathering. So a GPU changes the whole batch at once, a CPU a
few crops that change alike and fit its cache; hue has no branches, and the blur is sums of shifted crops.
"""

from itertools import permutations
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor
from torch.nn.functional import pad

from dinov2.data.view import MEAN, STD

GRAY = (0.2989, 0.587, 0.114)  # weights of R, G, B in luminance (ITU-R 601)
ORDERS = torch.tensor(list(permutations(range(4))))  # [24 4]
NEUTRAL = torch.tensor([1.0, 1.0, 1.0, 0.0])  # factors that change nothing
BLUR_RADIUS_PX = 4  # a kernel of 9 at every crop size, as the reference
CACHE_BYTES = 2_400_000  # of floats that a CPU changes at once


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
    """Crops with their colours changed, normalised by ImageNet's statistics, each without regard to the others."""
    steps = _steps(colours)
    values = torch.stack([*colours.factors.T, colours.gray, colours.sigma_px, colours.solarize])  # [changes n]
    if crops.device.type != "cpu":
        x = crops.float()
        _recolour(x, steps, values)
        return _normalise(x)
    out = torch.empty(crops.shape)
    order = np.lexsort(steps[list(SORTED_BY)])  # crops that change alike lie side by side
    sources, targets = crops.unbind(), out.unbind()
    most = max(1, CACHE_BYTES // (4 * crops[0].numel()))
    for first in range(0, len(order), most):
        rows = order[first : first + most]
        some = torch.stack([sources[row] for row in rows]).float()
        _recolour(some, steps[:, rows], values[:, rows])
        for row, crop in zip(rows, _normalise(some), strict=True):
            targets[row].copy_(crop)
    return out


def _normalise(x: Tensor) -> Tensor:
    """By ImageNet's statistics, in place; a plane at a time, as a CPU is slower where a value is spread over planes."""
    for plane, mean, std in zip(x.unbind(1), MEAN, STD, strict=True):
        plane.sub_(mean).div_(std)
    return x


def _steps(colours: Colours) -> Bool[np.ndarray, "steps n"]:
    """Which crops each of STEPS changes: the jitter's four places, then the rest in their fixed order."""
    jitters = ORDERS[colours.order].T[:, None] == torch.arange(4)[:, None]  # [places changes n]
    jitters &= (colours.factors != NEUTRAL).T
    others = torch.stack([colours.gray > 0, colours.sigma_px > 0, colours.solarize > 0])
    return torch.cat([jitters.flatten(0, 1), others]).numpy()


def _recolour(x: Tensor, steps: Bool[np.ndarray, "steps n"], values: Tensor) -> None:
    """Change floats from 0 to 255 in place; they are from 0 to 1 then."""
    x.div_(255)
    if x.device.type == "cpu":
        own = values.unbind()
        for step, start, stop in _runs(steps):  # views, so that nothing is gathered
            CHANGES[STEPS[step]](x[start:stop], own[STEPS[step]][start:stop])
        return
    for step in np.flatnonzero(steps.any(axis=1)):
        rows = torch.from_numpy(np.flatnonzero(steps[step]))
        places = rows.to(x.device, non_blocking=True)
        some = x[places]
        CHANGES[STEPS[step]](some, values[STEPS[step], rows].to(x.device, non_blocking=True))
        x[places] = some


def _runs(steps: Bool[np.ndarray, "steps n"]) -> list[tuple[int, int, int]]:
    """(step, first crop, crop after the last) of neighbours that a step changes, in the steps' order."""
    padded = np.zeros((len(steps), steps.shape[1] + 2), dtype=bool)
    padded[:, 1:-1] = steps
    edges = np.argwhere(padded[:, 1:] != padded[:, :-1]).reshape(-1, 4).tolist()
    return [(step, start, stop) for step, start, _, stop in edges]


def change_brightness(x: Float[Tensor, "n 3 h w"], factor: Float[Tensor, " n"]) -> Float[Tensor, "n 3 h w"]:
    """Blend with black, in place."""
    return x.mul_(factor.view(-1, 1, 1, 1)).clamp_(0, 1)


def change_contrast(x: Float[Tensor, "n 3 h w"], factor: Float[Tensor, " n"]) -> Float[Tensor, "n 3 h w"]:
    """Blend with each crop's mean gray, in place."""
    factor = factor.view(-1, 1, 1, 1)
    mean = to_gray(x.mean(dim=(2, 3), keepdim=True))
    return x.mul_(factor).add_(mean.mul_(1 - factor)).clamp_(0, 1)


def change_saturation(x: Float[Tensor, "n 3 h w"], factor: Float[Tensor, " n"]) -> Float[Tensor, "n 3 h w"]:
    """Blend with the gray of each pixel, in place."""
    factor = factor.view(-1, 1, 1, 1)
    gray = to_gray(x).mul_(1 - factor)
    return x.mul_(factor).add_(gray).clamp_(0, 1)


def turn_hue(x: Float[Tensor, "n 3 h w"], turns: Float[Tensor, " n"]) -> Float[Tensor, "n 3 h w"]:
    """Move the hue by `turns` (1 is once round the circle, at most that), in place; in HSV, value and saturation stay.

    Without a comparison: q = (2 R - G - B) / chroma falls from 2 at red to -2 at the opposite cyan, in three straight
    parts, so that the distance from red is 3/2 - q + clamp(q, -1, 1) / 2 sixths of the circle, on the side of G - B.
    And a channel's value is straight in the distance from its own hue, between the least and the greatest value.
    """
    red, green, blue = x.unbind(1)  # [n h w]
    least, chroma = torch.minimum(red, green), torch.maximum(red, green)
    torch.minimum(least, blue, out=least)
    torch.maximum(chroma, blue, out=chroma).sub_(least)
    side = green - blue
    safe = chroma.clamp_min(1e-12)  # gray pixels have chroma 0
    position = (red - green).add_(red).sub_(blue).div_(safe)  # q
    ramp = torch.clamp(position, -1, 1, out=safe)
    distance = position.sub_(ramp, alpha=0.5).mul_(-1 / 6).add_(0.25)  # in turns, from 0 to 1/2
    hue = distance.copysign_(side).add_((turns + 2).view(-1, 1, 1)).frac_()  # from red, in [0, 1)
    low, high = torch.sub(least, chroma, out=side), least.add_(chroma, alpha=2)
    for channel, (start, centre, sign) in enumerate(((low, 1 / 2, 6), (high, 1 / 3, -6), (high, 2 / 3, -6))):
        torch.sub(hue, centre, out=ramp).abs_().clamp_(1 / 6, 1 / 3)
        torch.addcmul(start, chroma, ramp, value=sign, out=x[:, channel])
    return x


def drop_colour(x: Float[Tensor, "n 3 h w"], _: Float[Tensor, " n"]) -> Float[Tensor, "n 3 h w"]:
    """The gray of each pixel in all channels, in place."""
    return x.copy_(to_gray(x))


def solarize(x: Float[Tensor, "n 3 h w"], _: Float[Tensor, " n"]) -> Float[Tensor, "n 3 h w"]:
    """Invert bright values, in place: on all 256 levels it is the reference's threshold of 128, as 127 = 255 - 128."""
    return torch.minimum(x, 1 - x, out=x)


def to_gray(x: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n 1 h w"]:
    """Luminance."""
    red, green, blue = x.split(1, dim=1)
    return (GRAY[0] * red).add_(green, alpha=GRAY[1]).add_(blue, alpha=GRAY[2])


def gaussian_blur(x: Float[Tensor, "n 3 h w"], sigma_px: Float[Tensor, " n"]) -> Float[Tensor, "n 3 h w"]:
    """Blur by a Gaussian of 9 x 9 pixels, in place, mirrored at the edges; sides must exceed 4 px."""
    reach = BLUR_RADIUS_PX
    distance = torch.arange(1, reach + 1, device=x.device)[:, None]
    weights = torch.exp(-0.5 * (distance / sigma_px) ** 2)  # [4 n], of the middle's
    ratios = torch.exp((0.5 - distance) / sigma_px**2).view(reach, -1, 1, 1, 1)  # of a weight to the one further in
    middle = (1 / (1 + 2 * weights.sum(dim=0))).view(-1, 1, 1, 1)
    for dim in (2, 3):
        padded = pad(x, (0, 0, reach, reach) if dim == 2 else (reach, reach, 0, 0), mode="reflect")
        shifted = [padded.narrow(dim, start, x.shape[dim]) for start in range(2 * reach + 1)]
        torch.add(shifted[0], shifted[-1], out=x)
        for far in range(reach - 1, 0, -1):  # from the outside in, each sum scaled to the next weight
            x.mul_(ratios[far]).add_(shifted[reach - far]).add_(shifted[reach + far])
        x.mul_(ratios[0]).add_(shifted[reach]).mul_(middle)
    return x


CHANGES = (change_brightness, change_contrast, change_saturation, turn_hue, drop_colour, gaussian_blur, solarize)
STEPS = (*range(4), *range(4), *range(4), *range(4), 4, 5, 6)
SORTED_BY = (16, *range(16), 17, 18)  # steps, the last first: those that cost most keep together
