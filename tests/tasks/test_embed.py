"""The embed stage by its command: its parts shared by workers, and workers that are killed."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from PIL import Image

from dinov2.hub import BackboneCard, save_backbone
from dinov2.models.params import ViTParams
from dinov2.models.vit import VisionTransformer
from dinov2.records import MANIFEST, write_table
from dinov2.shards import ShardWriter
from dinov2.store import Store, StoreParams

ROOT = Path(__file__).parents[2]
NETWORK = ViTParams(
    patch_size=8, dim=16, depth=1, heads=2, ffn="mlp", num_registers=0, layerscale=1.0, drop_path=0.0,
    image_size_px=32, interpolate_offset=0.0, interpolate_antialias=False,
)  # fmt: skip
COMMAND = [
    sys.executable, "-m", "tasks.embed", "--filter", "filter", "--bootstrap", "bootstrap", "--seeds", "seeds",
    "--evaluation", "evaluation",
]  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A project folder with 140 noisy images as the pool, in blocks of four, and two workers."""
    draw = np.random.default_rng(0)

    def noisy(path: Path) -> bytes:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(0, 255, (90, 120, 3), np.uint8)).save(path)
        return path.read_bytes()

    store = Store(StoreParams(url=str(tmp_path / "store"), cache=str(tmp_path / "cache"), remote=None))
    row = {"mime": "image/png", "url": None, "page_url": None, "label": None, "width": 120, "height": 90}
    with ShardWriter(store, tmp_path / "packing", shard_mb=1) as writer:
        for _ in range(140):
            writer.add(noisy(tmp_path / "image.png"), row)
    write_table(tmp_path / "filter/manifest.parquet", MANIFEST, writer.rows)
    for name in ("seeds", "evaluation"):
        for number in range(5):
            noisy(tmp_path / name / "a" / f"{number}.png")
    card = BackboneCard(
        architecture=NETWORK, image_size_px=32, mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2), training={}, licence="none"
    )
    torch.manual_seed(0)
    save_backbone(tmp_path / "bootstrap", VisionTransformer(NETWORK), card)
    text = (ROOT / "params.yaml").read_text().replace("sqlite:///mlflow.db", "http://127.0.0.1:9")
    text = text.replace("block_rows: 512", "block_rows: 4").replace("dims: 128", "dims: 32")
    (tmp_path / "params.yaml").write_text(text)
    return tmp_path


def start(folder: Path, out: str) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
    with (folder / "log").open("a") as log:
        return subprocess.Popen([*COMMAND, "--out", out], cwd=folder, env=environment, stdout=log, stderr=log)


def outputs(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def use_two_workers(folder: Path) -> None:
    text = (folder / "params.yaml").read_text()
    assert "workers: 1" in text
    (folder / "params.yaml").write_text(text.replace("workers: 1", "workers: 2"))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_killed_worker_and_another_number_of_workers_change_no_byte(folder: Path) -> None:
    first = start(folder, "one")
    assert first.wait() == 0, (folder / "log").read_text()
    (work,) = (folder / "work/embed").glob("*/made")
    work.parent.rename(folder / "aside")
    use_two_workers(folder)
    stopped = start(folder, "two")
    while not list((folder / "work/embed").glob("*/made/embed/*")) and stopped.poll() is None:
        time.sleep(0.02)
    family = [psutil.Process(stopped.pid), *psutil.Process(stopped.pid).children(recursive=True)]
    for process in reversed(family[1:]):
        process.send_signal(signal.SIGKILL)
    assert stopped.wait() == 1
    made = len(list((folder / "work/embed").glob("*/made/embed/*")))
    assert made < 39
    second = start(folder, "two")
    assert second.wait() == 0, (folder / "log").read_text()
    assert outputs(folder / "one") == outputs(folder / "two")
    counts = json.loads((folder / "two/record.json").read_text())["counts"]
    assert counts == {"num_in": 140, "num_kept": 140, "dropped": {}}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_list_that_was_cut_short_is_made_again(folder: Path) -> None:
    use_two_workers(folder)
    stopped = start(folder, "out")
    while not list((folder / "work/embed").glob("*/listed/others.json")) and stopped.poll() is None:
        time.sleep(0.02)
    for process in [*psutil.Process(stopped.pid).children(recursive=True), psutil.Process(stopped.pid)]:
        process.kill()
    stopped.wait()
    (listed,) = (folder / "work/embed").glob("*/listed/seeds.parquet")
    listed.write_bytes(listed.read_bytes()[:100])
    assert start(folder, "out").wait() == 1
    assert "embed: work of this stage was damaged; start it again" in (folder / "log").read_text()
    assert start(folder, "out").wait() == 0, (folder / "log").read_text()
