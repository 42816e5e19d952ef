"""Photographs that pip packages carry, found on disk without importing the packages."""

import importlib.util
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from dinov2.params import InputError

WHOLE = (0.0, 0.0, 1.0, 1.0)


class Photograph(NamedTuple):
    """A photograph that is cut into tiles; the label of its tiles is its name."""

    label: str
    path: Path
    crop: tuple[float, float, float, float] = WHOLE
    """Left, top, right, bottom as shares of width and height; what lies outside is not used."""


# (package, file inside it, label, what to use of it: without the drum's caption and the black round the retina)
PACKAGED: tuple[tuple[str, str, str, tuple[float, float, float, float]], ...] = (
    ("foolbox", "data/imagenet_00_243.jpg", "bull-mastiff", WHOLE),
    ("foolbox", "data/imagenet_01_559.jpg", "folding-chairs", WHOLE),
    ("foolbox", "data/imagenet_02_438.jpg", "beaker", WHOLE),
    ("foolbox", "data/imagenet_03_990.jpg", "buckeye", WHOLE),
    ("foolbox", "data/imagenet_04_949.jpg", "strawberries", WHOLE),
    ("foolbox", "data/imagenet_05_853.jpg", "thatched-house", WHOLE),
    ("foolbox", "data/imagenet_06_609.jpg", "jeep", WHOLE),
    ("foolbox", "data/imagenet_07_609.jpg", "blue-car", WHOLE),
    ("foolbox", "data/imagenet_08_915.jpg", "yurt", WHOLE),
    ("foolbox", "data/imagenet_09_455.jpg", "bottle-cap", WHOLE),
    ("foolbox", "data/imagenet_10_541.jpg", "drum", (0.0, 0.0, 1.0, 0.86)),
    ("foolbox", "data/imagenet_11_630.jpg", "shoe", WHOLE),
    ("foolbox", "data/imagenet_12_741.jpg", "stained-glass", WHOLE),
    ("foolbox", "data/imagenet_13_471.jpg", "cannon", WHOLE),
    ("foolbox", "data/imagenet_14_129.jpg", "spoonbills", WHOLE),
    ("foolbox", "data/imagenet_15_99.jpg", "geese", WHOLE),
    ("foolbox", "data/imagenet_16_251.jpg", "dalmatian", WHOLE),
    ("foolbox", "data/imagenet_17_22.jpg", "eagle", WHOLE),
    ("foolbox", "data/imagenet_18_317.jpg", "leafhopper", WHOLE),
    ("foolbox", "data/imagenet_19_305.jpg", "dung-beetle", WHOLE),
    ("skimage", "data/astronaut.png", "astronaut", WHOLE),
    ("skimage", "data/brick.png", "bricks", WHOLE),
    ("skimage", "data/camera.png", "cameraman", WHOLE),
    ("skimage", "data/chelsea.png", "cat", WHOLE),
    ("skimage", "data/coffee.png", "coffee", WHOLE),
    ("skimage", "data/coins.png", "coins", WHOLE),
    ("skimage", "data/grass.png", "grass", WHOLE),
    ("skimage", "data/gravel.png", "gravel", WHOLE),
    ("skimage", "data/hubble_deep_field.jpg", "galaxies", WHOLE),
    ("skimage", "data/ihc.png", "tissue", WHOLE),
    ("skimage", "data/motorcycle_left.png", "motorcycle", WHOLE),
    ("skimage", "data/retina.jpg", "retina", (0.13, 0.13, 0.87, 0.87)),
    ("skimage", "data/rocket.jpg", "rocket", WHOLE),
    ("sklearn", "datasets/images/china.jpg", "pagoda", WHOLE),
    ("sklearn", "datasets/images/flower.jpg", "dahlia", WHOLE),
    ("matplotlib", "mpl-data/sample_data/grace_hopper.jpg", "admiral", WHOLE),
)


def packaged_photographs() -> list[Photograph]:
    """The photographs of PACKAGED, in that order. Raises InputError if a package or a file is absent."""
    roots: dict[str, Path] = {}
    for package in dict.fromkeys(row[0] for row in PACKAGED):
        spec = importlib.util.find_spec(package)
        if spec is None or spec.origin is None:
            raise InputError(f"package '{package}' is not installed and carries photographs; pip install -e '.[demo]'")
        roots[package] = Path(spec.origin).parent
    photographs = [Photograph(label, roots[package] / name, crop) for package, name, label, crop in PACKAGED]
    for photograph in photographs:
        if not photograph.path.exists():
            raise InputError(f"{photograph.path} does not exist; pip install -c constraints.txt -e '.[demo]'")
    return photographs


def open_photograph(photograph: Photograph) -> Image.Image:
    """Its pixels as RGB, cropped. A JPEG far above 1024 px is decoded at a half, a quarter or an eighth of its size."""
    with Image.open(photograph.path) as image:
        image.draft("RGB", (1024, 1024))
        pixels = image.convert("RGB")
    left, top, right, bottom = photograph.crop
    width_px, height_px = pixels.size
    return pixels.crop(
        (round(left * width_px), round(top * height_px), round(right * width_px), round(bottom * height_px))
    )
