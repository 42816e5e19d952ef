"""How crops and masks are drawn, and what images are trained on. Imports no torch."""

from typing import Annotated, Literal

from pydantic import Field

from dinov2.params import InputError, Params

Share = Annotated[float, Field(ge=0, le=1)]


class CropParams(Params):
    """Two global crops and some local crops of every image, with their changes of colour."""

    global_size_px: Annotated[int, Field(gt=0)]
    """Side of a global crop."""
    global_scale: tuple[Share, Share]
    """Smallest and largest share of the image's area in a global crop."""
    local_size_px: Annotated[int, Field(gt=0)]
    """Side of a local crop."""
    local_scale: tuple[Share, Share]
    """Smallest and largest share of the image's area in a local crop."""
    num_local: Annotated[int, Field(ge=0)]
    """Local crops of an image."""
    blur: Literal["reference", "paper"]
    """Blur probabilities of global crop 1, 2 and local crops: as trained (0, 0.9, 0.5) or as written (1, 0.1, 0.5)."""
    brightness: Annotated[float, Field(ge=0)]
    """Strength of colour jitter's brightness."""
    contrast: Annotated[float, Field(ge=0)]
    """Strength of colour jitter's contrast."""
    saturation: Annotated[float, Field(ge=0)]
    """Strength of colour jitter's saturation."""
    hue: Annotated[float, Field(ge=0, le=0.5)]
    """Strength of colour jitter's hue."""
    jitter_probability: Share
    """Share of crops whose colours are jittered."""
    grayscale_probability: Share
    """Share of crops without colour."""
    solarize_probability: Share
    """Share of second global crops that are solarised."""


class MaskParams(Params):
    """Block masks of the student's global crops (iBOT)."""

    probability: Share
    """Share of the global crops that get a mask."""
    ratio_min: Share
    """Smallest share of a masked crop's patches that is masked."""
    ratio_max: Share
    """Largest share of a masked crop's patches that is masked."""


Weight = Annotated[float, Field(gt=0)]


class CuratedParams(Params):
    """The images that the stage retrieve chose."""

    kind: Literal["curated"]
    path: str | None
    """Folder with the manifest.parquet of a retrieve stage; null: of this pipeline's."""
    weight: Weight
    """Share of the images drawn, in proportion to the other sources' weights."""


class FolderParams(Params):
    """All images below a folder, labelled by its subfolders."""

    kind: Literal["folder"]
    path: str
    """The folder."""
    weight: Weight
    """As of curated."""


class ListParams(Params):
    """The images that a text file names, a path a line, relative to it; after a tab the label, if there is one."""

    kind: Literal["list"]
    path: str
    """The text file."""
    weight: Weight
    """As of curated."""


class ParquetParams(Params):
    """Images whose bytes are in a column of Parquet files."""

    kind: Literal["parquet"]
    path: str
    """A file, or a folder with *.parquet below it."""
    weight: Weight
    """As of curated."""
    image_column: str
    """Column with the bytes of image files, or with structs that have a field `bytes`."""
    label_column: str | None
    """Column with the labels; null: there are none."""


SourceParams = Annotated[CuratedParams | FolderParams | ListParams | ParquetParams, Field(discriminator="kind")]


def images_of_process(batch_size: int, group_size: int, num_processes: int, *, num_parts: int = 1) -> int:
    """How many of a step's `batch_size` images each process makes: equal parts of whole groups.

    Raises InputError if they don't divide so.
    """
    if batch_size % (num_processes * num_parts * group_size):
        parts = f" with {num_parts} micro-batches each" if num_parts > 1 else ""
        raise InputError(
            f"batch_size {batch_size} does not divide into {num_processes} processes{parts} of whole groups of "
            f"{group_size}; change batch_size, group_size or the number of processes"
        )
    return batch_size // num_processes
