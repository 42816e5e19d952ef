"""The networks that highres trains on and distill is taught by: those of section pretrain, with larger positions."""

from pathlib import Path
from typing import Any

from dinov2.data.params import CropParams
from dinov2.params import InputError, read_yaml, validate
from dinov2.train.params import Architecture


def networks_of_highres(params_file: Path) -> Architecture:
    """Pretrain's networks with positions for highres's global crops. Raises InputError where a section is wrong."""
    section = _section(params_file, "pretrain")
    chosen = {name: section[name] for name in Architecture.model_fields if name in section}
    architecture = validate(Architecture, chosen, where=f"{params_file.name}: pretrain")
    where = f"{params_file.name}: highres.crops"
    crops = validate(CropParams, _section(params_file, "highres").get("crops"), where=where)
    model = architecture.model.model_copy(update={"image_size_px": crops.global_size_px})
    return architecture.model_copy(update={"model": model})


def _section(params_file: Path, name: str) -> dict[str, Any]:
    section = read_yaml(params_file).get(name)
    if not isinstance(section, dict):
        raise InputError(f"{params_file} has no section '{name}', which says what the networks are; add it")
    return section
