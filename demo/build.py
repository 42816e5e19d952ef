"""The demo's input: a crawl in WARC files, seeds and evaluation images, and the list of what was planted.

    inputs/<name>/crawl/*.warc.gz
    inputs/<name>/seeds/<label>/*.jpg
    inputs/<name>/evaluation/<label>/*.jpg
    inputs/<name>/planted.json        {"kinds": {url: kind}, "originals": {url of a copy: url or file of its original},
                                       "labels": {url of a photograph: its label}}
    inputs/<name>/about.json          what the labels ask for, where they are photographs; the report says it
    inputs/<name>/complete.json       what it was made from; written last

Deterministic: the same photographs give the same bytes. Built beside its place and renamed, so that a build that was
stopped leaves nothing half done.
"""

import hashlib
import io
import json
import re
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from demo.crawl import write_crawl
from demo.folder import Folder, Photo, describe_skipped, scan_folder, split_class
from demo.photographs import Photograph, open_photograph, packaged_photographs
from demo.planted import NUM_PLANTED, Picture, make_resources
from demo.tiles import SMALLEST_PHOTOGRAPH_PX, cut_tiles, encode_jpeg
from dinov2.params import InputError
from dinov2.records import write_json

VERSION = 1  # raised when the same photographs give other bytes
MAX_CUT_PHOTOGRAPHS = 40  # of a flat folder; the others go into the crawl whole
COMPLETE = "complete.json"
ABOUT_INSTANCES = (
    "A label is the photograph that a tile was cut from, so this is instance recognition, not recognition of kinds: "
    "colours alone tell many photographs apart. No pixel of an evaluation tile is in a seed or in the crawl."
)


class Roles(NamedTuple):
    """Pictures by what they are for."""

    pool: list[Picture]
    seeds: list[Picture]
    evaluation: list[Picture]


class Built(NamedTuple):
    """A demo input on disk."""

    folder: Path
    is_new: bool
    counts: dict[str, int]
    note: str | None  # one line for the person who gave the folder


def build_packaged(inputs: Path) -> Built:
    """The input made of the photographs that packages carry, in `inputs/demo`."""
    photographs = packaged_photographs()
    digest = hashlib.sha256()
    for photograph in photographs:
        digest.update(f"{photograph.label} {photograph.crop}".encode() + photograph.path.read_bytes())
    mark = {"version": VERSION, "sources": digest.hexdigest(), "labels": "photograph"}
    folder = inputs / "demo"
    if (counts := _complete(folder, mark)) is not None:
        return Built(folder, False, counts, None)
    return Built(folder, True, write_input(folder, _cut(photographs), mark), None)


def build_folder(inputs: Path, images: Path) -> Built:
    """The input made of a person's folder of photographs, in `inputs/<its name>-<8 digits of its contents>`.

    Raises InputError if the folder is absent, empty, or holds too little to have seeds and evaluation images.
    """
    found = scan_folder(images)
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", images.resolve().name).strip("-.") or "images"
    folder = inputs / f"{name}-{found.fingerprint[:8]}"
    labels = "class" if found.classes else "photograph"
    mark = {"version": VERSION, "sources": found.fingerprint, "labels": labels}
    note = describe_skipped(found)
    if (counts := _complete(folder, mark)) is not None:
        return Built(folder, False, counts, note)
    roles = _by_class(found, images) if found.classes else _flat(found, images)
    return Built(folder, True, write_input(folder, roles, mark), note)


def _complete(folder: Path, mark: dict[str, Any]) -> dict[str, int] | None:
    """Counts of the input in `folder` if it is whole and was made from the same, else None."""
    path = folder / COMPLETE
    if not path.exists():
        return None
    values = json.loads(path.read_text())
    counts = values.pop("counts", None)
    return counts if values == mark and isinstance(counts, dict) else None


def write_input(
    folder: Path, roles: Roles, mark: dict[str, Any], planted: Mapping[str, int] = NUM_PLANTED
) -> dict[str, int]:
    """Write all of an input from pictures and what is planted among them; returns how many of each there are."""
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    evaluation_files = [
        picture._replace(name=f"evaluation/{_write_labelled(partial / 'evaluation', picture)}")
        for picture in roles.evaluation
    ]
    for picture in roles.seeds:
        _write_labelled(partial / "seeds", picture)
    resources = make_resources(roles.pool, evaluation_files, planted)
    num_pages = write_crawl(resources, partial / "crawl")
    about = {
        "kinds": {resource.url: resource.kind for resource in resources},
        "originals": {resource.url: resource.original for resource in resources if resource.original is not None},
        "labels": {resource.url: resource.label for resource in resources if resource.label},
    }
    write_json(partial / "planted.json", about)
    if mark["labels"] == "photograph":
        write_json(partial / "about.json", {"task": "instance recognition", "sentence": ABOUT_INSTANCES})
    counts = {
        "labels": len({picture.label for picture in roles.evaluation}),
        "pages": num_pages,
        "seeds": len(roles.seeds),
        "evaluation": len(roles.evaluation),
        **dict(sorted(Counter(resource.kind for resource in resources).items())),
    }
    write_json(partial / COMPLETE, {**mark, "counts": counts})
    if folder.exists():
        shutil.rmtree(folder)
    partial.rename(folder)
    return counts


def _write_labelled(folder: Path, picture: Picture) -> str:
    """Write a picture as `<label>/<name>.jpg`; returns that path."""
    path = folder / picture.label / f"{picture.name}.jpg"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(picture.read())
    return path.relative_to(folder).as_posix()


def _cut(photographs: Sequence[Photograph]) -> Roles:
    """Tiles of photographs, labelled by their photograph. Of the pool's, a few are PNG or WebP.

    A photograph too plain for both seeds and evaluation images gives tiles to the pool only.
    """
    roles = Roles([], [], [])
    for photograph in photographs:
        tiles = cut_tiles(open_photograph(photograph), photograph.label)
        if len({tile.role for tile in tiles} - {"pool"}) < 2:
            tiles = [tile for tile in tiles if tile.role == "pool"]
        for number, tile in enumerate(tiles):
            mime, data = "image/jpeg", tile.data
            if tile.role == "pool" and number % 14 in (5, 12):
                mime = "image/png" if number % 14 == 5 else "image/webp"
                data = _as(tile.data, mime)
            picture = Picture(f"{number:03d}", photograph.label, mime, data)
            getattr(roles, tile.role).append(picture)
    return roles


def _as(data: bytes, mime: str) -> bytes:
    stream = io.BytesIO()
    with Image.open(io.BytesIO(data)) as image:
        image.save(stream, mime.removeprefix("image/").upper(), quality=88)
    return stream.getvalue()


def _by_class(found: Folder, images: Path) -> Roles:
    """Photographs of class folders, split by role with their bytes as they are; JPEG where a stage needs it."""
    roles = Roles([], [], [])
    for label in sorted(found.photos):
        if label in found.classes:
            split = split_class(found.photos[label])
            roles.seeds.extend(_labelled(i, label, photo) for i, photo in enumerate(split.seeds))
            roles.evaluation.extend(_labelled(i, label, photo) for i, photo in enumerate(split.evaluation))
            pool = split.pool
        else:
            pool = found.photos[label]
        roles.pool.extend(_whole(label, photo) for photo in pool)
    if len({picture.label for picture in roles.evaluation}) < 2:
        raise InputError(f"IMAGES: {images} has fewer than 2 classes of at least 2 different images; give more images")
    if not roles.pool:
        raise InputError(f"IMAGES: {images} has no class of 5 images, so nothing is left to crawl; give more images")
    return roles


def _flat(found: Folder, images: Path) -> Roles:
    """Tiles of the first photographs that are large enough; the others whole, into the pool."""
    photos = [photo for label in sorted(found.photos) for photo in found.photos[label]]
    large = [photo for photo in photos if photo.shorter_px >= SMALLEST_PHOTOGRAPH_PX][:MAX_CUT_PHOTOGRAPHS]
    roles = _cut([Photograph(label, photo.path) for label, photo in zip(_labels(large), large, strict=True)])
    if len({picture.label for picture in roles.evaluation}) < 2:
        raise InputError(
            f"IMAGES: {images} is flat and holds {len(photos)} images, {len(large)} of at least "
            f"{SMALLEST_PHOTOGRAPH_PX} px; give at least 2 such photographs, or a folder a class"
        )
    cut = set(large)
    roles.pool.extend(_whole("", photo) for photo in photos if photo not in cut)
    return roles


def _labels(photos: Sequence[Photo]) -> list[str]:
    """A distinct label a photograph, from its file's name."""
    labels: list[str] = []
    for photo in photos:
        stem = re.sub(r"[^A-Za-z0-9_-]+", "-", photo.path.stem).strip("-") or "photograph"
        labels.append(stem if stem not in labels else f"{stem}-{photo.sha256[:8]}")
    return labels


def _labelled(number: int, label: str, photo: Photo) -> Picture:
    source = photo.path if photo.mime == "image/jpeg" else _to_jpeg(photo.path)
    return Picture(f"{number:04d}", label, "image/jpeg", source)


def _whole(label: str, photo: Photo) -> Picture:
    if photo.mime is None:
        return Picture(photo.path.name, label, "image/jpeg", _to_jpeg(photo.path))
    return Picture(photo.path.name, label, photo.mime, photo.path)


def _to_jpeg(path: Path) -> bytes:
    with Image.open(path) as image:
        return encode_jpeg(image.convert("RGB"), quality=95)
