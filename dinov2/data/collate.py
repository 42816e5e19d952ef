"""One step's batch from (seed, step) alone: which images, their crops as bytes, their colours' changes, their masks.

A process makes its own part of the global batch, whole groups of `group_size` images, so that the batch of all
processes together does not depend on their number.
"""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, UInt8
from torch import Tensor

from dinov2.data.augment import NUM_CROP_DRAWS, cut_crops, draw_colours, num_draws
from dinov2.data.colour import Colours, recolour
from dinov2.data.decode import DecodeError, decode_rgb
from dinov2.data.draws import integer_seed, uniforms
from dinov2.data.masking import draw_masks
from dinov2.data.mixture import index_at, name_at
from dinov2.data.params import CropParams, MaskParams, images_of_process
from dinov2.data.sources import Source
from dinov2.params import InputError

MAX_BAD_IN_A_ROW = 100  # then the data set as a whole is taken to be broken


class RawBatch(NamedTuple):
    """A step's images of one process, all on the CPU; b images, l local crops each."""

    global_crops: UInt8[Tensor, "2 b 3 g g"]
    local_crops: UInt8[Tensor, "l b 3 s s"]
    colours: tuple[Colours, Colours, Colours]
    """Of global crops 1, of global crops 2, of all local crops (crop-major)."""
    masks: Bool[Tensor, "2*b n"]
    """Of the global crops, crop-major."""
    group_seeds: list[int]
    """For stochastic depth, one a group."""


def finish(raw: RawBatch, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """(global crops [2 b 3 g g], local crops [l b 3 s s], masks) with changed colours, normalised, on `device`.

    The masks stay on the CPU, where their rows are counted without waiting for a GPU.
    """
    first, second, local = raw.colours
    flat = raw.global_crops.to(device, non_blocking=True).flatten(0, 1)
    both = Colours(*(torch.cat(values) for values in zip(first, second, strict=True)))
    global_crops = recolour(flat, both).unflatten(0, (2, -1))
    num_local = len(raw.local_crops)
    if num_local == 0:
        return global_crops, raw.local_crops.to(device).float(), raw.masks
    flat = raw.local_crops.to(device, non_blocking=True).flatten(0, 1)
    return global_crops, recolour(flat, local).unflatten(0, (num_local, -1)), raw.masks


class BadSamples:
    """The images that could not be read: each listed once, with its reason, in a file of JSON lines."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._known = {row["id"] for row in read_bad_samples(path)}

    def add(self, sample_id: str, reason: str) -> None:
        """List an image; nothing happens if it is listed already."""
        with self._lock:
            if sample_id in self._known:
                return
            self._known.add(sample_id)
            with self.path.open("a") as stream:
                stream.write(json.dumps({"id": sample_id, "reason": reason}) + "\n")


def read_bad_samples(path: Path) -> list[dict[str, str]]:
    """Listed images, each once, by id; an unfinished last line (the process was killed) is left out."""
    if not path.exists():
        return []
    lines = path.read_text().splitlines(keepends=True)
    rows = {row["id"]: row for row in (json.loads(line) for line in lines if line.endswith("\n"))}
    return [rows[key] for key in sorted(rows)]


class Collator:
    """Makes the batch of any step. May be called by several threads at once."""

    def __init__(
        self,
        source: Source,
        crops: CropParams,
        masks: MaskParams,
        *,
        seed: int,
        batch_size: int,
        group_size: int,
        patch_size: int,
        rank: int,
        world_size: int,
        bad_samples: BadSamples,
        num_parts: int = 1,
    ) -> None:
        """`batch_size` counts all processes' images, of which each one's pass in `num_parts` parts.

        Raises InputError if the groups do not divide so.
        """
        self.source = source
        self.crops = crops
        self.masks = masks
        self.seed = seed
        self.batch_size = batch_size
        self.group_size = group_size
        self.patch_size = patch_size
        self.num_images = images_of_process(batch_size, group_size, world_size, num_parts=num_parts)
        self.first = rank * self.num_images
        self.bad_samples = bad_samples

    def __call__(self, step: int) -> RawBatch:
        """The batch of `step`, from 0.

        Raises InputError if 100 images in a row of a source can't be read, RuntimeError, with step and sample, for what
        is our own fault.
        """
        params, num = self.crops, self.num_images
        side_px, local_px = params.global_size_px, params.local_size_px
        global_crops = torch.empty(2, num, 3, side_px, side_px, dtype=torch.uint8)
        local_crops = torch.empty(params.num_local, num, 3, local_px, local_px, dtype=torch.uint8)
        draws = np.empty((num, num_draws(params)))
        for place in range(num):
            slot = self.first + place
            draws[place] = uniforms("augment", self.seed, step, slot, num_draws(params))
            index, image = self._image(step, step * self.batch_size + slot)
            with self._named(step, index):
                cut_crops(image, draws[place], params, global_crops[:, place], local_crops[:, place])
        by_crop = draws.reshape(num, -1, NUM_CROP_DRAWS).swapaxes(0, 1)  # [crops b draws]
        groups = range(self.first // self.group_size, (self.first + num) // self.group_size)
        return RawBatch(
            global_crops,
            local_crops,
            (
                draw_colours(by_crop[0], "global_1", params),
                draw_colours(by_crop[1], "global_2", params),
                draw_colours(by_crop[2:].reshape(-1, NUM_CROP_DRAWS), "local", params),
            ),
            self._masks(step, groups),
            [integer_seed("drop_path", self.seed, step, group) for group in groups],
        )

    def _masks(self, step: int, groups: range) -> Tensor:
        grid = self.crops.global_size_px // self.patch_size
        masks = [
            draw_masks(self.masks, seed=self.seed, step=step, group=group, num_images=self.group_size, grid=grid)
            for group in groups
        ]
        return torch.cat(masks, dim=1).flatten(0, 1)

    def _image(self, step: int, position: int) -> tuple[int, UInt8[np.ndarray, "h w 3"]]:
        """Index and pixels at a position of the endless order, or of the next image in its source that can be read."""
        index, reason = 0, ""
        for number in range(MAX_BAD_IN_A_ROW):
            index = index_at(self.source, self.seed, position, later=number)
            try:
                with self._named(step, index):
                    return index, decode_rgb(self.source.read(index))
            except (DecodeError, OSError) as error:
                reason = str(error)
                self.bad_samples.add(self.source.id(index), reason)
        raise InputError(
            f"{MAX_BAD_IN_A_ROW} images in a row of {name_at(self.source, index)} can't be read, the last because: "
            f"{reason}; {self.bad_samples.path} lists them; mend the images"
        )

    @contextmanager
    def _named(self, step: int, index: int) -> Iterator[None]:
        """Names step and sample in an error that is neither the image's nor a person's."""
        try:
            yield
        except (DecodeError, OSError, InputError):
            raise
        except Exception as error:
            where = f"step {step}, sample {self.source.id(index)}"
            raise RuntimeError(f"{where}: {type(error).__name__}: {error}") from error
