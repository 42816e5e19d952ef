"""What names blobs: the `blobs.json` of outputs, below data/ and in DVC's cache, and the work that is not finished."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.parquet as pq

from dinov2.params import InputError, read_yaml
from dinov2.records import opening
from dinov2.store import BLOB_NAME

PINS = "blobs.json"
IN_TEXT = re.compile(rf"(?<![0-9a-f]){BLOB_NAME.pattern}")
NOT_SCANNED = re.compile(r"checkpoints|job.*")  # hold no names of blobs, and much else


class Pin(NamedTuple):
    """That a blob is needed."""

    size: int
    """Bytes."""
    by: str
    """Folder of the output, or what else names it."""


def pins_of_outputs(data: Path) -> dict[str, Pin]:
    """The blobs that outputs below `data` name. Raises InputError for a file that is none of ours."""
    pins: dict[str, Pin] = {}
    for path in sorted(data.rglob(PINS)):
        pins |= _read(path, by=str(path.parent))
    return pins


def pins_of_cache(root: Path) -> dict[str, Pin]:
    """The blobs of all outputs that DVC's cache in the repository `root` holds: what a checkout can bring back."""
    cache = _dvc_cache(root)
    pins: dict[str, Pin] = {}
    for listing in sorted(cache.glob("files/md5/??/*.dir")) if cache else []:
        for entry in _json(listing):
            file = _cached(cache, entry["md5"]) if cache else None
            if Path(entry["relpath"]).name == PINS and file is not None and file.exists():
                pins |= _read(file, by=f"an earlier output in DVC's cache ({listing.stem[:8]})")
    return pins


def check_outputs_are_known(root: Path) -> None:
    """Raise InputError if dvc.lock names an output that is neither there nor in DVC's cache: its pins are unknown."""
    lock = root / "dvc.lock"
    stages = read_yaml(lock).get("stages") if lock.exists() else None
    cache = _dvc_cache(root)
    for stage in stages.values() if isinstance(stages, dict) else []:
        for out in stage.get("outs", []):
            if not _is_known(root / out["path"], str(out.get("md5", "")), cache):
                raise InputError(
                    f"dvc.lock names {out['path']}, which is neither there nor in DVC's cache, so that its blobs are "
                    "unknown; run `dvc pull`, or run the stage"
                )


def _is_known(path: Path, md5: str, cache: Path | None) -> bool:
    """Whether the pins of an output are in its place or in DVC's cache, also after a `dvc pull` that was stopped."""
    listing = None if cache is None or md5 == "" else _cached(cache, md5)
    if cache is None or listing is None or not listing.exists():
        return path.exists()
    pins = [entry for entry in _json(listing) if Path(entry["relpath"]).name == PINS] if md5.endswith(".dir") else []
    return all(_cached(cache, entry["md5"]).exists() or (path / entry["relpath"]).exists() for entry in pins)


def named_in_work(work: Path) -> dict[Path, set[str]]:
    """Blobs that each folder of a stage's work names, `work/<stage>/<fingerprint>/`, where it names any.

    A stage's parts tell their blobs in JSON files or in a column `shard` of Parquet files.
    """
    return {folder: names for folder in sorted(work.glob("*/*/")) if (names := set(_named_below(folder)))}


def is_finished(folder: Path) -> bool:
    """Whether a folder of work is that of a stage whose output is published; if not, it is still needed."""
    return (folder / "run.json").exists() and not (folder / "out").exists()


def _named_below(folder: Path) -> Iterator[str]:
    for path in sorted(folder.rglob("*")):
        if NOT_SCANNED.fullmatch(path.relative_to(folder).parts[0]):
            continue
        if path.suffix == ".json":
            yield from (found[0] for found in IN_TEXT.finditer(path.read_text(errors="replace")))
        elif path.suffix == ".parquet":
            with opening(path), pq.ParquetFile(path) as table:
                if "shard" in table.schema_arrow.names:
                    shards = table.read(columns=["shard"])["shard"]
                    yield from (name for name in shards.unique().to_pylist() if name)


def _read(path: Path, *, by: str) -> dict[str, Pin]:
    sizes = _json(path)
    if not isinstance(sizes, dict):
        raise InputError(f"{path} is not a list of blobs and their sizes; make it again (dvc repro)")
    for name, size in sizes.items():
        if BLOB_NAME.fullmatch(name) is None or not isinstance(size, int) or size < 0:
            raise InputError(f"{path} names '{name}' of {size} bytes, which is no blob; make it again (dvc repro)")
    return {name: Pin(size, by) for name, size in sizes.items()}


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{path} can't be read ({error}); make it again (dvc repro, or dvc checkout)") from error


def _cached(cache: Path, md5: str) -> Path:
    return cache / "files/md5" / md5[:2] / md5[2:]


def _dvc_cache(root: Path) -> Path | None:
    """DVC's cache of the repository; None where DVC is not used."""
    if not (root / ".dvc").is_dir():
        return None
    command = [sys.executable, "-m", "dvc", "cache", "dir"]
    answer = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    if answer.returncode != 0:
        raise InputError(f"`dvc cache dir` in {root.absolute()} fails ({answer.stderr.strip()}); mend that first")
    return root / answer.stdout.strip()
