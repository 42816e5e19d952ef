"""All stages in one go on drawn images: counts add up, outputs are whole, and results change only with a VERSION.

Pinned results are kept in tests/pinned.json. After a change of results that is meant, raise VERSION in the stage's file
and run `PIN=1 python -m pytest tests/test_end_to_end.py`.
"""

import json
import os
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from dinov2.hub import load_backbone
from dinov2.records import CURATED, MANIFEST, REMOVED, read_table
from flows.stages import STAGES

PINNED = Path(__file__).with_name("pinned.json")
CURATION = ("crawl", "download", "filter", "dedup", "retrieve")


def results(pipeline: Any, stage: str) -> dict[str, Any]:
    """What is pinned of a stage: the counts and metrics of each of its outputs."""
    return {
        instance: {"counts": summary.model_dump(exclude={"metrics"}), "metrics": summary.metrics}
        for instance, summary in sorted(pipeline.summaries.items())
        if instance.split("/")[0] == stage
    }


@pytest.mark.parametrize("stage", STAGES)
def test_a_changed_result_needs_a_raised_version(tiny_pipeline: Any, stage: str) -> None:
    version = import_module(f"tasks.{stage}").VERSION
    found = results(tiny_pipeline, stage)
    pinned = json.loads(PINNED.read_text()) if PINNED.exists() else {}
    if os.environ.get("PIN"):
        pinned[stage] = {"version": version, "results": found}
        PINNED.write_text(json.dumps(pinned, indent=1, sort_keys=True) + "\n")
        return
    known = pinned[stage]
    assert version == known["version"], f"VERSION of {stage} was raised: pin its results anew, as said above"
    for instance, result in found.items():
        before = known["results"][instance]
        why = f"results of {instance} changed: raise VERSION in tasks/{stage}.py and pin them anew, or mend the code"
        assert result["counts"] == before["counts"], why
        # other processors round differently; a change of method moves these by far more
        assert result["metrics"] == pytest.approx(before["metrics"], rel=1e-3, abs=1e-4), why


@pytest.mark.parametrize("stage", CURATION)
def test_what_goes_in_is_kept_or_listed_as_removed(tiny_pipeline: Any, stage: str) -> None:
    counts = tiny_pipeline.summaries[stage]
    removed = read_table(tiny_pipeline.outputs[stage] / "removed.parquet", REMOVED)
    assert counts.num_in == counts.num_kept + sum(counts.dropped.values())
    assert len(removed) == sum(counts.dropped.values())


def test_a_stage_is_given_what_the_one_before_kept(tiny_pipeline: Any) -> None:
    summaries = tiny_pipeline.summaries
    assert summaries["download"].num_in == summaries["crawl"].num_kept
    assert summaries["filter"].num_in == summaries["download"].num_kept


def test_curated_images_are_in_the_store_with_their_bytes(tiny_pipeline: Any) -> None:
    rows = read_table(tiny_pipeline.outputs["retrieve"] / "manifest.parquet", CURATED)
    pinned = json.loads((tiny_pipeline.outputs["retrieve"] / "blobs.json").read_text())
    assert {row["shard"] for row in rows} == set(pinned)
    assert {row["origin"] for row in rows} >= {"seed", "sample"}
    pool = read_table(tiny_pipeline.outputs["filter"] / "manifest.parquet", MANIFEST)
    assert {row["id"] for row in rows if row["origin"] != "seed"} <= {row["id"] for row in pool}


def test_backbones_load_strictly_and_highres_has_the_larger_grid(tiny_pipeline: Any) -> None:
    data = tiny_pipeline.root / "data"
    sizes = {name: load_backbone(data / name)[1].image_size_px for name in ("bootstrap", "pretrain", "highres")}
    assert sizes == {"bootstrap": 32, "pretrain": 32, "highres": 48}
    assert len(list(data.glob("distill/*/backbone.safetensors"))) == 3


def test_the_report_needs_nothing_from_outside(tiny_pipeline: Any) -> None:
    page = (tiny_pipeline.outputs["report"] / "report.html").read_text()
    assert 'src="http' not in page
    assert 'rel="stylesheet"' not in page
    assert "random" in (tiny_pipeline.outputs["report"] / "summary.txt").read_text()
