"""A clone of the repository with a demo of seconds a stage, on a small disk of its own, which may be broken at will."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from conftest import ROOT, TINY, draw_inputs
from ruamel.yaml import YAML
from slurm_lab import SMALL

from dinov2.params import read_yaml

DISK_MB = 700
PAGE_PADDING_BYTES = 700_000  # so that pages are of different parts, which hold a megabyte each
PARTS = {
    "download": {"records_per_part": 8},
    "filter": {"part_images": 8},
    "embed": {"block_rows": 8},
    "dedup": {"block_rows": 8},
}
TRAINED = ("bootstrap", "pretrain", "highres", "distill")
STEPS = {"num_steps": 60, "checkpoint_every_steps": 5, "group_size": 4}
MODELS = {"baselines": "pretrain", "random": "pretrain", "highres": "highres", "demo-s": "distill/demo-s"}


class Sandbox:
    """A clone in `folder`, whose flow reports to a Prefect server and a tracking server of the chaos's own."""

    def __init__(self, folder: Path, *, cluster: str, prefect: str, tracking: str) -> None:
        self.folder = folder
        self.has_own_disk = _mount(folder)
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(folder)], check=True)
        draw_inputs(folder / "inputs")
        _divide_page(folder / "inputs/crawl")
        with (folder / "params.yaml").open("w") as stream:
            YAML().dump(_params(cluster, tracking), stream)
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        self.environment = {"PATH": path, "PYTHONPATH": str(folder), "PREFECT_API_URL": prefect}

    def start_flow(self, log: Path) -> subprocess.Popen[bytes]:
        """Start the whole pipeline, as its user does; what it says goes to `log`."""
        with log.open("ab") as stream:
            return subprocess.Popen(
                [sys.executable, "-m", "flows.full_pipeline"], cwd=self.folder, env={**os.environ, **self.environment},
                stdout=stream, stderr=stream, stdin=subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip

    def outputs(self) -> dict[str, bytes]:
        """Every file below data/."""
        data = self.folder / "data"
        return {str(path.relative_to(data)): path.read_bytes() for path in data.rglob("*") if path.is_file()}

    def remove(self) -> None:
        """Give the disk back."""
        if self.has_own_disk:
            subprocess.run(["umount", "--lazy", self.folder], check=False)
        shutil.rmtree(self.folder, ignore_errors=True)


def _mount(folder: Path) -> bool:
    """Mount a small file system at `folder`; returns whether that was possible (it takes root)."""
    folder.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MB}m,mode=755", "chaos", str(folder)]
    return os.geteuid() == 0 and subprocess.run(mount, capture_output=True, check=False).returncode == 0


def _params(cluster: str, tracking: str) -> dict[str, Any]:
    """The params of the tests' tiny pipeline, with more parts, more steps, several workers and two ranks."""
    stages: dict[str, dict[str, int]] = {stage: {"workers": 2} for stage in ("crawl", *PARTS)}
    stages["pretrain"] = {"nodes": 2} if cluster == "slurm" else {"gpus_per_node": 2}
    values = {
        "inputs": {name: f"inputs/{name}" for name in ("crawl", "seeds", "evaluation")},
        **TINY,
        "models": MODELS,
        "gates": {},
        "store": {"url": "store", "cache": "work/store-cache", "remote": None},
        "flows": read_yaml(ROOT / "params.yaml")["flows"],
        "launch": {"cluster": cluster, "save_s": 20, "max_timeouts": 5, "default": SMALL, "stages": stages},
        "tracking": {"uri": tracking, "experiment": "chaos", "ship_every_s": 1.0, "idle_s": 20.0},
    }
    for stage, changed in {**PARTS, **dict.fromkeys(TRAINED, STEPS)}.items():
        values[stage] = {**values[stage], **changed}
    values["report"] = {**values["report"], "models": [name for name in MODELS if name != "baselines"]}
    return values


def _divide_page(crawl: Path) -> None:
    """Several pages in place of one, so that several workers have something to read."""
    page = crawl / "page.html"
    tags = re.findall("<img [^>]*>", page.read_text())
    page.unlink()
    for number in range(4):
        padding = f"<!-- {'x' * PAGE_PADDING_BYTES} -->"
        (crawl / f"page{number}.html").write_text(f"<html><body>{''.join(tags[number::4])}{padding}</body></html>")
