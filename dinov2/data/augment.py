"""Two global and several local crops of an image, as the paper draws them (DINOv2 section 4, from DINO and BYOL).

Two halves: `cut_crops` is the geometry of one image, on bytes and on the CPU; `draw_colours` says how colours change,
which `colour.recolour` does for a batch of crops on any device. Every random number is one of `draws.uniforms` of
(seed, step, position in the global batch).
"""

from math import exp, log, sqrt
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn.functional import interpolate

from dinov2.data.colour import Colours
from dinov2.data.params import CropParams

Kind = Literal["global_1", "global_2", "local"]
BLUR_PROBABILITY: dict[str, dict[Kind, float]] = {
    "reference": {"global_1": 0.0, "global_2": 0.9, "local": 0.5},  # what the released models were trained with
    "paper": {"global_1": 1.0, "global_2": 0.1, "local": 0.5},
}
SIGMA_PX = (0.1, 2.0)  # of the blur, at any crop size
LOG_RATIO = (log(3 / 4), log(4 / 3))  # width / height of a crop before it is resized
NUM_TRIES = 10  # places drawn before a crop is given up and the middle is taken
NUM_GEOMETRY_DRAWS = 2 * NUM_TRIES + 3
NUM_COLOUR_DRAWS = 10
NUM_CROP_DRAWS = NUM_GEOMETRY_DRAWS + NUM_COLOUR_DRAWS


def num_draws(params: CropParams) -> int:
    """Uniform numbers that one image needs."""
    return (2 + params.num_local) * NUM_CROP_DRAWS


def cut_crops(
    image: UInt8[np.ndarray, "h w 3"],
    draws: Float[np.ndarray, " draws"],
    params: CropParams,
    global_out: UInt8[Tensor, "2 3 g g"],
    local_out: UInt8[Tensor, "l 3 s s"],
) -> None:
    """Write the random resized crops of one image, half of them flipped, into `global_out` and `local_out`.

    `draws` has NUM_CROP_DRAWS numbers a crop, of which the first are used here.
    """
    pixels = torch.from_numpy(image).permute(2, 0, 1)  # channels last in memory: torch's fast path for bytes
    by_crop = draws.reshape(-1, NUM_CROP_DRAWS).tolist()
    for crop, out in enumerate([*global_out, *local_out]):
        scale = params.global_scale if crop < 2 else params.local_scale
        top, left, height, width = place_crop(image.shape[0], image.shape[1], scale, by_crop[crop])
        region = pixels[None, :, top : top + height, left : left + width]
        resized = interpolate(region, size=tuple(out.shape[1:]), mode="bicubic", antialias=True)[0]
        out.copy_(resized.flip(2) if by_crop[crop][NUM_GEOMETRY_DRAWS - 1] < 0.5 else resized)


def place_crop(height: int, width: int, scale: tuple[float, float], draws: list[float]) -> tuple[int, int, int, int]:
    """(top, left, height, width) of a random crop: its share of the area by `scale`, its ratio from 3/4 to 4/3.

    Where ten draws don't fit into the image, the largest middle part with an allowed ratio.
    """
    for number in range(NUM_TRIES):
        target = height * width * (scale[0] + (scale[1] - scale[0]) * draws[2 * number])
        ratio = exp(LOG_RATIO[0] + (LOG_RATIO[1] - LOG_RATIO[0]) * draws[2 * number + 1])
        crop_width, crop_height = round(sqrt(target * ratio)), round(sqrt(target / ratio))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            top = int(draws[2 * NUM_TRIES] * (height - crop_height + 1))
            left = int(draws[2 * NUM_TRIES + 1] * (width - crop_width + 1))
            return top, left, crop_height, crop_width
    crop_width = min(width, max(1, round(height * exp(LOG_RATIO[1]))))
    crop_height = min(height, max(1, round(width / exp(LOG_RATIO[0]))))
    return (height - crop_height) // 2, (width - crop_width) // 2, crop_height, crop_width


def draw_colours(draws: Float[np.ndarray, "n draws"], kind: Kind, params: CropParams) -> Colours:
    """The colour changes of n crops of one kind from their numbers, [n, NUM_CROP_DRAWS]."""
    own = torch.from_numpy(draws[:, NUM_GEOMETRY_DRAWS:]).float()
    strength = torch.tensor([params.brightness, params.contrast, params.saturation])
    low, high = (1 - strength).clamp(min=0), 1 + strength
    changes = torch.cat([low + (high - low) * own[:, 1:4], (2 * own[:, 4:5] - 1) * params.hue], dim=1)
    neutral = torch.tensor([1.0, 1.0, 1.0, 0.0])
    blurred = own[:, 6] < BLUR_PROBABILITY[params.blur][kind]
    solarize_probability = params.solarize_probability if kind == "global_2" else 0.0
    return Colours(
        factors=torch.where(own[:, :1] < params.jitter_probability, changes, neutral),
        order=(own[:, 5] * 24).long().clamp(max=23),
        gray=(own[:, 8] < params.grayscale_probability).float(),
        sigma_px=torch.where(blurred, SIGMA_PX[0] + (SIGMA_PX[1] - SIGMA_PX[0]) * own[:, 9], 0.0),
        solarize=(own[:, 7] < solarize_probability).float(),
    )
