"""What every test runs under: one thread, no display, no telemetry, and the repository's root on hand."""

import logging
import os
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from inspect import signature
from pathlib import Path
from typing import Any, get_type_hints

import pytest

# Before torch or numpy is imported: results don't depend on threads, and test runs don't fight for cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.update(
    DO_NOT_TRACK="1",
    DVC_NO_ANALYTICS="1",
    MLFLOW_DISABLE_TELEMETRY="true",
    PREFECT_SERVER_ANALYTICS_ENABLED="false",
)

import numpy as np
from PIL import Image

from dinov2.params import read_yaml, validate
from dinov2.records import Summary
from dinov2.store import Store, StoreParams
from flows.stages import STAGES
from tasks.fan_out import make_parts, phases
from tasks.hashing import hash_tree
from tasks.stage import StageCall, write_record

ROOT = Path(__file__).resolve().parents[1]
TINY: dict[str, Any] = read_yaml(Path(__file__).with_name("tiny.yaml"))


@pytest.fixture(autouse=True)
def _root_logger_as_it_was() -> Iterator[None]:
    """A command that a test calls in this process sets up logging to streams that end with the test."""
    handlers, level = logging.root.handlers[:], logging.root.level
    yield
    logging.root.handlers[:] = handlers
    logging.root.setLevel(level)


@pytest.fixture(scope="session")
def repository() -> Path:
    """The repository's root."""
    return Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def tiny_pipeline(tmp_path_factory: pytest.TempPathFactory) -> "TinyPipeline":
    """Every stage, run once in this process on 40 drawn images with networks of a few thousand weights."""
    return TinyPipeline(tmp_path_factory.mktemp("tiny"))


class TinyPipeline:
    """Inputs, params and outputs of a pipeline that takes seconds; `outputs[instance]` is a folder, as under data/."""

    def __init__(
        self, root: Path, params: Mapping[str, Any] = TINY, draw: Callable[[Path], None] | None = None
    ) -> None:
        self.root, self._params = root, params
        self.store = Store(StoreParams(url=str(root / "store"), cache=str(root / "cache"), remote=None))
        self.outputs: dict[str, Path] = {}
        self.summaries: dict[str, Summary] = {}
        (draw or draw_inputs)(root / "inputs")
        given = {name: root / "inputs" / name for name in ("crawl", "seeds", "evaluation")}
        for stage in STAGES:
            for instance, names, paths in self._calls(stage, given):
                self._run(stage, instance, self._params[stage], names, paths)

    def _calls(self, stage: str, given: dict[str, Path]) -> list[tuple[str, dict[str, str], dict[str, Path]]]:
        made = {**self.outputs, "evaluate": self.root / "data/evaluate", "crawl_records": self.outputs.get("crawl")}
        known = {**{name: path for name, path in made.items() if path is not None}, **given}
        if stage in ("retrieve", "report"):
            known["crawl"] = self.outputs["crawl"]
        if stage != "evaluate":
            return [(stage, {}, known)]
        folders = {model: self.root / "data" / path for model, path in self._params["models"].items()}
        return [(f"evaluate/{model}", {"model": model}, {**known, "backbone": path}) for model, path in folders.items()]

    def _run(self, stage: str, instance: str, values: object, names: dict[str, str], known: dict[str, Path]) -> None:
        module = import_module(f"tasks.{stage}")
        hints = get_type_hints(module.run)
        out, work = self.root / "data" / instance, self.root / "work" / instance / "0123456789abcdef"
        out.mkdir(parents=True)
        work.mkdir(parents=True)
        supplied = {**known, **names, "out": out, "work": work, "store": self.store}
        params = validate(hints["params"], values, where=stage)
        arguments = {name: supplied[name] for name in signature(module.run).parameters if name != "params"}
        for phase in phases(module):
            make_parts(phase, {**supplied, "params": params}, first=0, of=1)
        summary = module.run(params, **arguments)
        inputs = {name: value for name, value in arguments.items() if isinstance(value, Path)}
        hashes = {name: hash_tree(path) for name, path in inputs.items() if name not in ("out", "work")}
        call = StageCall(stage, {}, names, str(out), params, module.VERSION, hashes)
        write_record(call, summary, out)
        self.outputs[instance] = out
        self.summaries[instance] = summary


def draw_inputs(folder: Path) -> None:
    """Smooth random pictures: a page of 26 for the crawl (two the same, one tiny), 12 seeds, 6 for evaluation."""
    generator = np.random.RandomState(0)

    def draw(path: Path, side_px: int = 72) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        coarse = generator.randint(0, 256, (5, 5, 3)).astype(np.uint8)
        Image.fromarray(coarse).resize((side_px, side_px), Image.Resampling.BICUBIC).save(path)

    names = [f"{number:02d}.png" for number in range(24)]
    for name in names:
        draw(folder / "crawl" / name)
    draw(folder / "crawl/tiny.png", side_px=20)
    (folder / "crawl/again.png").write_bytes((folder / "crawl/00.png").read_bytes())
    tags = "".join(f'<img src="{name}">' for name in [*names, "tiny.png", "again.png", "ftp://a.example/x.png"])
    (folder / "crawl/page.html").write_text(f"<html><body>{tags}</body></html>")
    for label in ("a", "b", "c"):
        for number in range(4):
            draw(folder / "seeds" / label / f"{number}.png")
        for number in range(2):
            draw(folder / "evaluation" / label / f"{number}.png")
