"""The whole pipeline where there is neither a seed nor an evaluation image: a balanced sample, and a given embedder."""

from pathlib import Path
from typing import Any

import pytest

from dinov2.curation.descriptors import EMBEDDED
from dinov2.params import InputError, validate
from dinov2.records import CURATED, read_table
from dinov2.store import Store, StoreParams
from tasks.embed import EmbedParams, count_blocks
from tests.conftest import TINY, TinyPipeline, draw_inputs

BALANCED = {
    "kind": "balanced", "coarser": [], "num_resamplings": 1, "num_resampled": 2, "num_images": 12, "pick": "closest",
}  # fmt: skip


def draw_only_pages(folder: Path) -> None:
    draw_inputs(folder)
    for name in ("seeds", "evaluation"):
        for path in (folder / name).rglob("*.png"):
            path.unlink()
    (folder.parent / "data/evaluate").mkdir(parents=True)  # what nothing is judged into


def test_pipeline_without_seeds_and_evaluation_images(tiny_pipeline: Any, tmp_path: Path) -> None:
    params = {
        **TINY,
        "models": {},
        "bootstrap": {**TINY["bootstrap"], "backbone": str(tiny_pipeline.outputs["bootstrap"])},
        "embed": {**TINY["embed"], "may_be_empty": ["seeds", "evaluation"]},
        "dedup": {**TINY["dedup"], "evaluation_sets": {}},
        "retrieve": {**TINY["retrieve"], "choose": BALANCED},
    }
    pipeline = TinyPipeline(tmp_path, params, draw_only_pages)
    for name in ("seeds", "evaluation"):
        assert read_table(pipeline.outputs["embed"] / f"{name}.parquet", EMBEDDED) == []
    curated = read_table(pipeline.outputs["retrieve"] / "manifest.parquet", CURATED)
    assert {(row["origin"], row["seed_id"], row["source"]) for row in curated} == {("balanced", None, None)}
    assert len(curated) == 12
    assert (pipeline.outputs["distill"] / "demo-s/backbone.safetensors").exists()
    assert "Nothing was evaluated yet" in (pipeline.outputs["report"] / "summary.txt").read_text()


@pytest.mark.parametrize("name", ["seeds", "evaluation"])
def test_an_empty_folder_is_a_mistake_unless_it_may_be_empty(tiny_pipeline: Any, tmp_path: Path, name: str) -> None:
    folders = {each: tiny_pipeline.root / "inputs" / each for each in ("seeds", "evaluation")}
    folders[name] = tmp_path / "empty"
    folders[name].mkdir()
    store = Store(StoreParams(url=str(tiny_pipeline.root / "store"), cache=str(tmp_path / "cache"), remote=None))
    params = validate(EmbedParams, TINY["embed"], where="embed")
    with pytest.raises(InputError, match="empty holds no images"):
        count_blocks(params, filter=tiny_pipeline.outputs["filter"], **folders, work=tmp_path, store=store)
