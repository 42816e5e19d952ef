"""pretrain, highres and distill after one another on a handful of images; bootstrap with a given backbone."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dinov2.hub import load_backbone
from dinov2.params import InputError, read_yaml, validate
from dinov2.records import CURATED, Summary, write_table
from dinov2.shards import ShardWriter
from dinov2.store import Store, StoreParams
from tasks import bootstrap, distill, highres, pretrain

HEAD = {"num_prototypes": 16, "hidden_dim": 16, "bottleneck_dim": 8, "num_layers": 2}
SMALL = {
    "batch_size": 4, "group_size": 4, "num_steps": 2, "log_every_steps": 1, "checkpoint_every_steps": 1,
}  # fmt: skip


def model(dim: int) -> dict[str, Any]:
    return {
        "patch_size": 8, "dim": dim, "depth": 1, "heads": 2, "ffn": "mlp", "num_registers": 0, "layerscale": 0.1,
        "drop_path": 0.0, "image_size_px": 32, "interpolate_offset": 0.0, "interpolate_antialias": False,
    }  # fmt: skip


def student(dim: int) -> dict[str, Any]:
    return {"model": model(dim), "dino_head": HEAD, "ibot_head": HEAD}


def section(repository: Path, stage: str, size_px: int, **changes: Any) -> dict[str, Any]:
    """The shipped section of a stage, made small."""
    values: Any = read_yaml(repository / "params.yaml")[stage]
    crops = {**values["crops"], "global_size_px": size_px, "local_size_px": 16, "num_local": 1}
    watch = {**values["watch"], "every_steps": 2, "images": 4}
    return {**values, **SMALL, "crops": crops, "watch": watch, **changes}


def fresh(path: Path) -> Path:
    path.mkdir(parents=True)
    return path


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(StoreParams(url=str(tmp_path / "store"), cache=str(tmp_path / "cache"), remote=None))


@pytest.fixture
def curated(tmp_path: Path, store: Store) -> Path:
    """Output of retrieve: six images, one of which is cut short."""
    with ShardWriter(store, tmp_path / "shards", shard_mb=1) as writer:
        for number in range(6):
            path = tmp_path / "image.png"
            Image.fromarray(np.random.default_rng(number).integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(path)
            data = path.read_bytes()[: 200 if number == 5 else None]
            about = {"width": 50, "height": 40, "mime": "image/png", "url": "", "page_url": ""}
            writer.add(data, {**about, "label": "ab"[number % 2]})
    rows = [{**row, "origin": "seed", "seed_id": row["id"], "cosine": 1.0, "cluster": 0} for row in writer.rows]
    write_table(tmp_path / "retrieve/manifest.parquet", CURATED, rows)
    return tmp_path / "retrieve"


def run_pretrain(repository: Path, curated: Path, store: Store, out: Path, work: Path) -> Summary:
    values = section(repository, "pretrain", 32, model=model(16), dino_head=HEAD, ibot_head=HEAD)
    params = validate(pretrain.PretrainParams, values, where="pretrain")
    return pretrain.run(params, retrieve=curated, out=fresh(out), work=fresh(work), store=store)


def test_pretrain_highres_distill_make_backbones(repository: Path, curated: Path, store: Store, tmp_path: Path) -> None:
    summary = run_pretrain(repository, curated, store, tmp_path / "pretrain", tmp_path / "work/p")
    assert summary.dropped == {"unreadable": 1}
    assert summary.num_kept == 5
    assert {"total", "ibot", "effective_rank", "knn"} <= summary.metrics.keys()
    assert (tmp_path / "pretrain/figures/losses.png").exists()
    assert (tmp_path / "pretrain/curves.csv").read_text().startswith("step,dino_local,")

    params = validate(highres.HighresParams, section(repository, "highres", 48), where="highres")
    highres.run(
        params, pretrain=tmp_path / "pretrain", retrieve=curated, out=fresh(tmp_path / "highres"),
        work=fresh(tmp_path / "work/h"), store=store,
    )  # fmt: skip
    small, card = load_backbone(tmp_path / "pretrain")
    large, large_card = load_backbone(tmp_path / "highres")
    assert (card.image_size_px, large_card.image_size_px) == (32, 48)
    assert large.pos_embed.shape == (1, 37, 16)
    torch.testing.assert_close(large.norm.weight, small.norm.weight, atol=0.05, rtol=0)

    students = {name: student(dim) for name, dim in (("s", 8), ("b", 12))}
    first = run_distill(repository, curated, store, tmp_path / "d1", students)
    assert {"s/total", "b/total"} <= first.metrics.keys()
    assert load_backbone(tmp_path / "d1/s")[1].architecture.dim == 8

    students["l"] = student(16)
    (marks,) = (tmp_path / "work/students").glob("s-*/backbone.safetensors")
    before = marks.stat().st_mtime_ns
    second = run_distill(repository, curated, store, tmp_path / "d2", students)
    assert marks.stat().st_mtime_ns == before  # s was finished and is not trained again
    assert {name: second.metrics[name] for name in first.metrics} == first.metrics
    assert load_backbone(tmp_path / "d2/l")[1].architecture.dim == 16


def run_distill(repository: Path, curated: Path, store: Store, out: Path, students: dict[str, Any]) -> Summary:
    params = validate(distill.DistillParams, section(repository, "distill", 32, students=students), where="distill")
    return distill.run(
        params, highres=out.parent / "highres", retrieve=curated, out=fresh(out),
        work=fresh(out.parent / "work" / out.name), store=store,
    )  # fmt: skip


def test_pretrain_twice_gives_the_same_bytes(repository: Path, curated: Path, store: Store, tmp_path: Path) -> None:
    summaries = [
        run_pretrain(repository, curated, store, tmp_path / f"out{number}", tmp_path / f"{number}/same")
        for number in range(2)
    ]
    assert summaries[0] == summaries[1]
    files = sorted(path.relative_to(tmp_path / "out0") for path in (tmp_path / "out0").rglob("*") if path.is_file())
    assert len(files) == 5
    for file in files:
        assert (tmp_path / "out0" / file).read_bytes() == (tmp_path / "out1" / file).read_bytes(), file


def test_bootstrap_takes_a_given_backbone(repository: Path, curated: Path, store: Store, tmp_path: Path) -> None:
    run_pretrain(repository, curated, store, tmp_path / "given", tmp_path / "work/p")
    seeds = fresh(tmp_path / "seeds/a")
    Image.new("RGB", (20, 20)).save(seeds / "1.png")
    values = section(
        repository, "bootstrap", 32, model=model(16), dino_head=HEAD, ibot_head=HEAD, backbone=str(tmp_path / "given")
    )
    params = validate(bootstrap.BootstrapParams, values, where="bootstrap")
    bootstrap.run(params, seeds=seeds.parent, out=fresh(tmp_path / "bootstrap"), work=fresh(tmp_path / "work/b"))
    for name in ("backbone.safetensors", "backbone.json"):
        assert (tmp_path / "bootstrap" / name).read_bytes() == (tmp_path / "given" / name).read_bytes()


def test_pretrain_goes_on_from_a_backbone_that_its_heads_learn_first(
    repository: Path, curated: Path, store: Store, tmp_path: Path
) -> None:
    run_pretrain(repository, curated, store, tmp_path / "given", tmp_path / "work/p")
    whole: Any = read_yaml(repository / "params.yaml")["pretrain"]
    schedule = {**whole["schedule"], "freeze_backbone_steps": 2, "freeze_last_layer_steps": 0, "warmup_steps": 0}
    wide = {**model(16), "image_size_px": 48}
    values = section(
        repository, "pretrain", 48, model=wide, dino_head=HEAD, ibot_head=HEAD, schedule=schedule,
        init_from={"path": str(tmp_path / "given"), "architecture": None},
    )  # fmt: skip
    frozen = validate(pretrain.PretrainParams, values, where="pretrain")
    pretrain.run(frozen, retrieve=curated, out=fresh(tmp_path / "a"), work=fresh(tmp_path / "work/a"), store=store)
    given, after = load_backbone(tmp_path / "given")[0], load_backbone(tmp_path / "a")[0]
    assert after.pos_embed.shape == (1, 37, 16)
    for name, value in given.state_dict().items():
        assert name == "pos_embed" or torch.equal(after.state_dict()[name], value), name

    learning = {**values, "schedule": {**schedule, "freeze_backbone_steps": 1}}
    params = validate(pretrain.PretrainParams, learning, where="pretrain")
    pretrain.run(params, retrieve=curated, out=fresh(tmp_path / "b"), work=fresh(tmp_path / "work/b"), store=store)
    later = load_backbone(tmp_path / "b")[0]
    assert not torch.equal(later.norm.weight, given.norm.weight)
    torch.testing.assert_close(later.norm.weight, given.norm.weight, atol=0.05, rtol=0)

    other = {**values, "model": {**wide, "dim": 8}}
    with pytest.raises(InputError, match="has dim 16, but the network that starts from it has 8"):
        pretrain.run(
            validate(pretrain.PretrainParams, other, where="pretrain"), retrieve=curated,
            out=fresh(tmp_path / "c"), work=fresh(tmp_path / "work/c"), store=store,
        )  # fmt: skip


def test_pretrain_refuses_a_checkpoint_of_other_images(
    repository: Path, curated: Path, store: Store, tmp_path: Path
) -> None:
    for name in ("a", "b"):
        path = tmp_path / "folder" / name / "0.png"
        path.parent.mkdir(parents=True)
        Image.new("RGB", (20, 20), (50, 60, len(name))).save(path)
    sources = [{"kind": "folder", "path": str(tmp_path / "folder"), "weight": 1.0}]
    values = section(
        repository, "pretrain", 32, model=model(16), dino_head=HEAD, ibot_head=HEAD, sources=sources, num_steps=1
    )
    params = validate(pretrain.PretrainParams, values, where="pretrain")
    work = fresh(tmp_path / "work/same")
    pretrain.run(params, retrieve=curated, out=fresh(tmp_path / "one"), work=work, store=store)
    Image.new("RGB", (20, 20)).save(tmp_path / "folder/a/more.png")
    with pytest.raises(InputError, match="belongs to run"):
        pretrain.run(params, retrieve=curated, out=fresh(tmp_path / "two"), work=work, store=store)


def test_highres_without_pretrain_says_so(repository: Path, curated: Path, store: Store, tmp_path: Path) -> None:
    params = validate(highres.HighresParams, section(repository, "highres", 48), where="highres")
    with pytest.raises(InputError, match="run the stage that makes it"):
        highres.run(
            params, pretrain=tmp_path / "none", retrieve=curated, out=tmp_path / "out", work=tmp_path / "work",
            store=store,
        )  # fmt: skip
