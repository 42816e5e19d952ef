"""What a step that was not finite leaves behind: all that `python -m dinov2.train.replay FOLDER` needs to run it again.

    step-000000123/    number of the step, as in the log; written under a temporary name, then renamed
        about.json     recipe, networks, the step's values, the numbers that were seen, whose step it was
        weights.pt     every network and centre as they were, unsharded; on a GPU after one step more, since it tells of
                       a step while the next one runs
        batch-0.pt     the images, colours and masks of rank 0, and so on
"""

import json
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from dinov2.data.collate import RawBatch
from dinov2.data.colour import Colours
from dinov2.distributed import own_group, rank, world_size
from dinov2.params import InputError
from dinov2.records import write_json
from dinov2.train.checkpoint import full_state
from dinov2.train.learning import Distillation, Learning
from dinov2.train.objective import architecture_of
from dinov2.train.params import RecipeParams
from dinov2.train.schedules import StepValues

logger = logging.getLogger(__name__)

ABOUT, WEIGHTS = "about.json", "weights.pt"


class Dump(NamedTuple):
    """A folder that was read."""

    about: dict[str, Any]
    weights: dict[str, Tensor]
    raw: RawBatch
    """The batch of all processes together, in their order."""


class Dumps:
    """Writes at most `max_dumps` of a run; made and called by all processes together."""

    def __init__(self, folder: Path, *, max_dumps: int) -> None:
        self.folder = folder
        self.max_dumps = max_dumps
        self._group = own_group() if max_dumps else None

    def write(
        self,
        learning: Learning,
        recipe: RecipeParams,
        raw: RawBatch,
        *,
        step: int,
        values: StepValues,
        numbers: dict[str, float],
        learners: Sequence[str],
        loss_scale: float | None,
    ) -> Path | None:
        """Dump `step`, of which `learners` had `numbers` that were not finite; None if there are enough dumps.

        A dump that can't be written (a full disk) is told of and left out: training is worth more.
        """
        num_there = len([path for path in self.folder.glob("step-*") if not path.suffix])
        final = self.folder / f"step-{step:09d}"
        temporary = final.with_suffix(".tmp")
        if not self._all(num_there < self.max_dumps and not final.exists()):
            return None
        weights = full_state(everything(learning))
        about = {
            "step": step, "world_size": world_size(), "learners": list(learners), "loss_scale": loss_scale,
            "numbers": {name: str(value) for name, value in numbers.items()},  # JSON has no NaN
            "values": values._asdict(), "recipe": recipe.model_dump(mode="json"), "networks": networks(learning),
        }  # fmt: skip
        trouble: OSError | None = None
        try:
            temporary.mkdir(parents=True, exist_ok=True)
            torch.save(_plain(raw), temporary / f"batch-{rank()}.pt")
            if rank() == 0:
                torch.save(weights, temporary / WEIGHTS)
                write_json(temporary / ABOUT, about)
        except (OSError, RuntimeError) as error:  # torch's archives call a full disk a RuntimeError
            logger.warning("rank %d can't write the dump %s (%s); training goes on without it", rank(), final, error)
            trouble = OSError(str(error))
        is_whole = self._all(trouble is None)
        if rank() == 0 and is_whole:
            temporary.rename(final)
        elif rank() == 0:
            shutil.rmtree(temporary, ignore_errors=True)
        if is_whole:
            logger.warning("python -m dinov2.train.replay %s runs the step again", final)
        return final if is_whole else None

    def _all(self, is_so: bool) -> bool:
        if self._group is None:
            return is_so
        shared = torch.tensor(int(is_so))
        dist.all_reduce(shared, op=dist.ReduceOp.MIN, group=self._group)
        return bool(shared)


def everything(learning: Learning) -> nn.Module:
    """All that takes part in a step, a frozen teacher too."""
    if isinstance(learning, Distillation):
        return nn.ModuleDict({"students": learning.students, "distiller": learning.distiller})
    return learning.saved


def networks(learning: Learning) -> dict[str, Any]:
    """The params of each learner's network and, in distillation, of the `teacher`'s, by name."""
    found = {name: architecture_of(network).model_dump(mode="json") for name, network in learning.learners().items()}
    if isinstance(learning, Distillation):
        teacher = architecture_of(learning.distiller.teacher)
        return {"students": found, "teacher": teacher.model_dump(mode="json")}
    return {"student": found[""]}


def _plain(raw: RawBatch) -> dict[str, Any]:
    return {**raw._asdict(), "colours": [colours._asdict() for colours in raw.colours]}


def read_dump(folder: Path) -> Dump:
    """What `Dumps.write` wrote, the processes' batches joined. Raises InputError if it is no whole dump."""
    try:
        about = json.loads((folder / ABOUT).read_text())
        weights = torch.load(folder / WEIGHTS, map_location="cpu", weights_only=True)
        parts = [
            torch.load(folder / f"batch-{number}.pt", map_location="cpu", weights_only=True)
            for number in range(about["world_size"])
        ]
        return Dump(about, weights, _joined(parts))
    except (OSError, ValueError, KeyError, RuntimeError, EOFError) as error:
        reason = str(error).splitlines()[0]
        do = "give a folder work/.../not_finite/step-N"
        raise InputError(f"{folder} is no whole dump of a step ({reason}); {do}") from error


def _joined(parts: list[dict[str, Any]]) -> RawBatch:
    """Images lie along the second axis of crops; masks and the local crops' colours are crop-major."""

    def crop_major(values: list[Tensor], num_crops: int) -> Tensor:
        return torch.cat([value.unflatten(0, (num_crops, -1)) for value in values], dim=1).flatten(0, 1)

    num_local = len(parts[0]["local_crops"])
    colours = []
    for place, num_crops in enumerate((1, 1, num_local)):
        each = [part["colours"][place] for part in parts]
        joined = {name: each[0][name] if num_crops == 0 else crop_major([one[name] for one in each], num_crops)
                  for name in each[0]}  # fmt: skip
        colours.append(Colours(**joined))
    return RawBatch(
        torch.cat([part["global_crops"] for part in parts], dim=1),
        torch.cat([part["local_crops"] for part in parts], dim=1),
        (colours[0], colours[1], colours[2]),
        crop_major([part["masks"] for part in parts], 2),
        [seed for part in parts for seed in part["group_seeds"]],
    )
