"""A backbone for other people's code.

In:    a backbone of ours (its folder), or a released file and its architecture
Out:   reference      a .pth file that the reference's code loads
       timm           a .safetensors file for timm's vit_*_dinov2 (`checkpoint_path=`)
       transformers   a folder for `AutoModel.from_pretrained`: config.json, preprocessor_config.json, model.safetensors
Run:   python -m dinov2.export --backbone data/pretrain --to transformers --out exported
"""

import argparse
import sys
from pathlib import Path
from typing import get_args

import torch
from safetensors.torch import save_file

from dinov2.data.view import RESIZE_RATIO
from dinov2.formats import Format, is_interpolated_alike, to_format, transformers_config
from dinov2.hub import BackboneCard, load_backbone, resize_grid
from dinov2.params import InputError
from dinov2.records import write_json


def export(path: Path, architecture: str | None, to: Format, out: Path, image_size_px: int | None) -> str | None:
    """Write the backbone at `path` for `to`; returns what its user has to know, if anything.

    `image_size_px` resizes the positions: there the other code's outputs are ours, however it interpolates elsewhere.
    Raises InputError if the backbone can't be read or `out` exists.
    """
    if out.exists():
        raise InputError(f"{out} exists; remove it or give another --out")
    model, card = load_backbone(path, architecture)
    state, params = model.state_dict(), model.params
    if image_size_px is not None:
        state = resize_grid(state, params, image_size_px)
        params = params.model_copy(update={"image_size_px": image_size_px})
    weights = {name: value.contiguous() for name, value in to_format(state, to).items()}
    out.parent.mkdir(parents=True, exist_ok=True)
    if to == "reference":
        torch.save(weights, out)
    elif to == "timm":
        save_file(weights, out, metadata={"format": "pt"})
    else:
        out.mkdir()
        save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
        write_json(out / "config.json", transformers_config(params))
        write_json(out / "preprocessor_config.json", _preprocessor(card, params.image_size_px))
    if is_interpolated_alike(params, to):
        return None
    return (
        f"{to} interpolates positions in another way than this backbone: outputs are equal for images of "
        f"{params.image_size_px} px and differ at other sizes; --image-size-px sets the size"
    )


def _preprocessor(card: BackboneCard, image_size_px: int) -> dict[str, object]:
    return {
        "image_processor_type": "BitImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": round(image_size_px * RESIZE_RATIO)},
        "resample": 3,  # bicubic
        "do_center_crop": True,
        "crop_size": {"height": image_size_px, "width": image_size_px},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(card.mean),
        "image_std": list(card.std),
    }


def main(arguments: list[str]) -> int:
    """The command; a person's mistake is one sentence and exit code 2."""
    parser = argparse.ArgumentParser(prog="python -m dinov2.export", description="a backbone for other people's code")
    parser.add_argument("--backbone", type=Path, required=True, help="folder of ours, or a released file")
    parser.add_argument("--architecture", help="of a released file: vit_small, vit_base_reg4, ...")
    parser.add_argument("--to", choices=get_args(Format), required=True)
    parser.add_argument("--out", type=Path, required=True, help="a file; for transformers a folder")
    parser.add_argument("--image-size-px", type=int, help="side of the images that positions are resized for")
    given = parser.parse_args(arguments)
    try:
        note = export(given.backbone, given.architecture, given.to, given.out, given.image_size_px)
    except InputError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    if note:
        sys.stderr.write(f"{note}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
