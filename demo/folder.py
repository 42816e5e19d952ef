"""A folder of a person's photographs, as the demo's input: a folder a class, or flat."""

import hashlib
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from dinov2.data.sources import SUFFIXES
from dinov2.files import files_below
from dinov2.params import InputError

MIMES = {"JPEG": "image/jpeg", "MPO": "image/jpeg", "PNG": "image/png", "WEBP": "image/webp", "GIF": "image/gif"}
EVALUATION_SHARE = 0.2
SEEDS_SHARE = 0.15
LEAST_SEEDS = 3


class Photo(NamedTuple):
    """An image file that decodes."""

    path: Path
    sha256: str
    mime: str | None  # None: decodes, but a crawl's stages don't take the format; converted to JPEG
    shorter_px: int


class Folder(NamedTuple):
    """What a folder of photographs holds."""

    photos: dict[str, list[Photo]]  # by class; the class "" of a flat folder and of images beside the class folders
    skipped: dict[str, int]  # reason -> files
    fingerprint: str  # sha256 of all names and contents

    @property
    def classes(self) -> list[str]:
        """Names of the class folders; none if flat."""
        named = sorted(label for label in self.photos if label)
        return named if len(named) >= 2 else []


class Split(NamedTuple):
    """A class's photographs by role."""

    pool: list[Photo]
    seeds: list[Photo]
    evaluation: list[Photo]


def scan_folder(folder: Path) -> Folder:
    """Every image in `folder` and below; the first folder below it is the class.

    What is no image, does not decode or repeats another's bytes is skipped and counted.
    Raises InputError if the folder is absent or holds no image.
    """
    if not folder.exists():
        raise InputError(f"IMAGES: {folder} does not exist; give a folder of photographs")
    if not folder.is_dir():
        raise InputError(f"IMAGES: {folder} is a file; give the folder that holds the photographs")
    files = [path for name in files_below(folder) if not (path := folder / name).name.startswith(".")]
    if not files:
        raise InputError(f"IMAGES: {folder} is empty; give a folder of photographs")
    photos: dict[str, list[Photo]] = {}
    skipped: Counter[str] = Counter()
    listing = hashlib.sha256()
    seen: set[str] = set()
    for path in files:
        relative = path.relative_to(folder)
        photo = _read_photo(path)
        if isinstance(photo, str):
            skipped[photo] += 1
            continue
        listing.update(f"{relative.as_posix()}\0{photo.sha256}\n".encode())
        if photo.sha256 in seen:
            skipped["the same bytes as another"] += 1
            continue
        seen.add(photo.sha256)
        photos.setdefault(relative.parts[0] if len(relative.parts) > 1 else "", []).append(photo)
    if not photos:
        raise InputError(f"IMAGES: {folder} holds no image ({_in_words(skipped)}); give a folder of photographs")
    return Folder(photos, dict(sorted(skipped.items())), listing.hexdigest())


def split_class(photos: list[Photo]) -> Split:
    """About a fifth for evaluation, at most 15 % as seeds but three where there are, the rest for the pool.

    Contents decide who goes where, not names. A lone image goes to the pool: it can't be both seed and evaluation.
    """
    ordered = sorted(photos, key=lambda photo: hashlib.sha256(f"split {photo.sha256}".encode()).digest())
    if len(ordered) < 2:
        return Split(ordered, [], [])
    num_evaluation = max(1, round(EVALUATION_SHARE * len(ordered)))
    num_seeds = min(len(ordered) - num_evaluation, max(LEAST_SEEDS, int(SEEDS_SHARE * len(ordered))))
    held_out = num_evaluation + num_seeds
    return Split(ordered[held_out:], ordered[num_evaluation:held_out], ordered[:num_evaluation])


def describe_skipped(folder: Folder) -> str | None:
    """One line about what was skipped, or None if nothing was."""
    return f"skipped {_in_words(folder.skipped)}" if folder.skipped else None


def _in_words(skipped: dict[str, int]) -> str:
    counts = ", ".join(f"{count} {reason}" for reason, count in sorted(skipped.items()))
    return f"{sum(skipped.values())} files: {counts}"


def _read_photo(path: Path) -> Photo | str:
    """The photo, or why it is none. A JPEG is decoded at an eighth of its size, which still finds it cut short."""
    if path.suffix.lower() not in SUFFIXES:
        return "not images"
    try:
        data = path.read_bytes()
        with Image.open(path) as image:
            shorter_px, mime = min(image.size), MIMES.get(image.format or "")
            image.draft("RGB", (32, 32))
            image.load()
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return "not decodable"
    return Photo(path, hashlib.sha256(data).hexdigest(), mime, shorter_px)
