"""Faces found, blurred and found again, and NSFW scores, on folders of photographs.

    python -m benchmarks.filter_safety --faces FOLDER --others FOLDER [FOLDER ...]

`--faces`: photographs of one clear face each (Caltech-101's class Faces); `--others`: photographs without faces, as far
as anybody looked (flowers). Prints the table of benchmarks/results/filter_safety.md. Needs the extra `safety`.
"""

import argparse
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from dinov2.curation.blurring import blur_faces
from dinov2.curation.faces import FacesParams, find_faces
from dinov2.curation.nsfw import nsfw_score
from dinov2.data.decode import decode_rgb
from dinov2.params import load_section
from tasks.filter import FilterParams

PRESET = Path("presets/paper-vitl.yaml")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faces", type=Path, required=True)
    parser.add_argument("--others", type=Path, nargs="+", required=True)
    parser.add_argument("--num", type=int, default=300, help="photographs a folder, evenly spaced (%(default)s)")
    options = parser.parse_args()
    params = load_section(PRESET, "filter", FilterParams)
    assert params.faces is not None and params.nsfw is not None
    print(
        "| longer side seen | least score | photographs of a face with one found | flowers with one | ms a photograph |"
    )
    print("|---|---|---|---|---|")
    for detect_px in (320, 480, 640):
        for min_score in (0.2, 0.35, 0.5):
            tried = params.faces.model_copy(update={"detect_px": detect_px, "min_score": min_score})
            (hits, ms), (wrong, _) = (
                share_with_faces(folders, options.num, tried)
                for folders in ([options.faces], options.others)
            )
            print(f"| {detect_px} px | {min_score} | {hits:.1%} | {wrong:.1%} | {ms:.0f} |")
    print(
        f"\nOf the blurred ones a face is found again in {found_again(options.faces, options.num, params.faces):.1%}."
    )
    scores = [
        nsfw_score(image, params.nsfw)
        for folder in (options.faces, *options.others)
        for image in read(folder, options.num)
    ]
    quantiles = ", ".join(f"{np.quantile(scores, share):.3f} ({share:.0%})" for share in (0.5, 0.95, 0.99, 1.0))
    above = np.mean(np.array(scores) > params.nsfw.max_score)
    print(
        f"NSFW scores of {len(scores)} of these photographs: {quantiles}; above {params.nsfw.max_score}: {above:.2%}."
    )


def read(folder: Path, num: int) -> Iterator[np.ndarray]:
    """Evenly spaced images of a folder and its folders."""
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
    for index in np.unique(np.linspace(0, len(files) - 1, min(num, len(files))).astype(int)):
        yield decode_rgb(files[index].read_bytes())


def share_with_faces(folders: list[Path], num: int, params: FacesParams) -> tuple[float, float]:
    """Share of images in which a face is found, and the milliseconds that takes."""
    found, seconds = [], 0.0
    for folder in folders:
        for image in read(folder, num):
            started = time.perf_counter()
            found.append(len(find_faces(image, params)) > 0)
            seconds += time.perf_counter() - started
    return float(np.mean(found)), 1000 * seconds / len(found)


def found_again(folder: Path, num: int, params: FacesParams) -> float:
    """Share of images with a face that still have one after blurring."""
    again = []
    for image in read(folder, num):
        boxes = find_faces(image, params)
        if len(boxes):
            again.append(len(find_faces(blur_faces(image, boxes, params), params)) > 0)
    return float(np.mean(again))


if __name__ == "__main__":
    main()
