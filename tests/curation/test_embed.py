"""The embed stage: three sets, both descriptors, what is left out, resuming, and dedup on what it wrote."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dinov2.curation.descriptors import EMBEDDED, Kind, SetName, read_descriptors, read_embedded
from dinov2.curation.params import ThumbnailParams
from dinov2.data.decode import decode_rgb
from dinov2.data.view import center_crop
from dinov2.hub import BackboneCard, load_backbone, save_backbone
from dinov2.models.params import ViTParams
from dinov2.models.vit import VisionTransformer
from dinov2.params import InputError, validate
from dinov2.records import MANIFEST, REMOVED, Summary, read_table, write_json, write_table
from dinov2.shards import ShardReader, ShardWriter
from dinov2.store import Store, StoreParams
from tasks.dedup import PHASES, DedupParams, EvaluationSet
from tasks.dedup import run as run_dedup
from tasks.embed import EmbedParams, run
from tasks.fan_out import make_parts

THUMBNAIL = ThumbnailParams(kind="thumbnail", size_px=8, dims=24, shrinkage=0.1)
PARAMS = EmbedParams(copy_descriptor=THUMBNAIL, block_rows=7, batch_size=3, precision="fp32", shard_mb=1)


def picture(seed: int) -> Image.Image:
    """Coarse random colours, smoothly enlarged."""
    cells = np.random.default_rng(seed).integers(0, 255, (6, 8, 3), np.uint8)
    return Image.fromarray(cells).resize((96, 72), Image.Resampling.BICUBIC)


def save(image: Image.Image, path: Path, quality: int = 90) -> bytes:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, quality=quality)
    return path.read_bytes()


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(StoreParams(url=str(tmp_path / "store"), cache=str(tmp_path / "cache")))


@pytest.fixture
def inputs(tmp_path: Path, store: Store) -> dict[str, Path]:
    """A pool of 30 images; number 20 copies number 3, 21 the seed a/1, 22 the evaluation image b/0."""
    evaluation, seeds = tmp_path / "evaluation", tmp_path / "seeds"
    for label, number in (("a", 100), ("a", 101), ("b", 102), ("b", 103)):
        save(picture(number), seeds / label / f"{number % 2}.jpg")
        save(picture(number + 100), evaluation / label / f"{number % 2}.jpg")
    (seeds / "b" / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 cut short")
    (seeds / "b" / "same.jpg").write_bytes((seeds / "a" / "0.jpg").read_bytes())
    copied = {20: picture(3), 21: picture(101), 22: picture(202)}
    with ShardWriter(store, tmp_path / "packing", shard_mb=1) as writer:
        for number in range(30):
            image = copied.get(number, picture(number)).resize((64, 48) if number in copied else (96, 72))
            data = save(image, tmp_path / "image.jpg", 60 if number in copied else 90)
            row = {"mime": "image/jpeg", "url": f"http://pool.example/{number}", "page_url": None, "label": None}
            writer.add(data, {**row, "width": image.width, "height": image.height})
    write_table(tmp_path / "filter" / "manifest.parquet", MANIFEST, writer.rows)
    network = ViTParams(
        patch_size=8, dim=16, depth=1, heads=2, ffn="mlp", num_registers=0, layerscale=1.0, drop_path=0.0,
        image_size_px=32, interpolate_offset=0.0, interpolate_antialias=False,
    )
    torch.manual_seed(0)
    card = BackboneCard(
        architecture=network, image_size_px=32, mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2), training={}, licence="none"
    )
    save_backbone(tmp_path / "bootstrap", VisionTransformer(network), card)
    folders = {name: tmp_path / name for name in ("filter", "bootstrap")}
    return {**folders, "seeds": seeds, "evaluation": evaluation}


@pytest.fixture
def embedded(tmp_path: Path, store: Store, inputs: dict[str, Path]) -> tuple[Path, Summary]:
    out = tmp_path / "embed"
    return out, run(PARAMS, **inputs, out=out, work=made(tmp_path / "work"), store=store)


def made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def test_descriptors_are_aligned_and_of_unit_length(embedded: tuple[Path, Summary], store: Store) -> None:
    out, summary = embedded
    sizes: dict[SetName, int] = {"pool": 30, "seeds": 4, "evaluation": 4}
    dimensions: dict[Kind, int] = {"copy": 24, "semantic": 16}
    for name, num in sizes.items():
        assert len(read_embedded(out, name)) == num
        for kind, dims in dimensions.items():
            vectors = read_descriptors(out, name, kind, store)
            assert vectors.shape == (num, dims)
            np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    assert (summary.num_in, summary.num_kept, summary.dropped) == (30, 30, {})


def test_semantic_descriptor_is_the_cls_token(
    embedded: tuple[Path, Summary], store: Store, inputs: dict[str, Path]
) -> None:
    model, _ = load_backbone(inputs["bootstrap"])
    row = read_embedded(embedded[0], "evaluation")[2]
    assert (row["path"], row["label"], row["shard"]) == ("b/0.jpg", "b", None)
    crop = center_crop(decode_rgb((inputs["evaluation"] / "b" / "0.jpg").read_bytes()), 32)
    with torch.inference_mode():
        cls = model((crop[None].float() / 255 - 0.5) / 0.2)[0].numpy()
    found = read_descriptors(embedded[0], "evaluation", "semantic", store)[2]
    np.testing.assert_allclose(found, cls / np.linalg.norm(cls), atol=2e-3)


def test_unreadable_and_repeated_seeds_are_listed(embedded: tuple[Path, Summary], store: Store) -> None:
    removed = read_table(embedded[0] / "removed" / "seeds.parquet", REMOVED)
    seeds = read_embedded(embedded[0], "seeds")
    assert {(row["url"], row["reason"]) for row in removed} == {
        ("b/broken.jpg", "undecodable"), ("b/same.jpg", "duplicate")
    }
    assert {row["witness_id"] for row in removed} == {None, seeds[0]["id"]}
    assert ShardReader(store).read(seeds[0])[:2] == b"\xff\xd8"


def test_evaluation_images_that_no_shard_takes_are_embedded_all_the_same(
    tmp_path: Path, store: Store, inputs: dict[str, Path]
) -> None:
    for folder in (inputs["seeds"], inputs["evaluation"]):
        picture(7).save(folder / "b" / "deep.tiff")
    summary = run(PARAMS, **inputs, out=tmp_path / "out", work=made(tmp_path / "work"), store=store)
    assert (summary.metrics["num_seeds"], summary.metrics["num_evaluation"]) == (4, 5)
    removed = read_table(tmp_path / "out" / "removed" / "seeds.parquet", REMOVED)
    assert ("b/deep.tiff", "format_not_packed") in {(row["url"], row["reason"]) for row in removed}


def test_killed_run_goes_on_to_the_same_bytes(tmp_path: Path, store: Store, inputs: dict[str, Path]) -> None:
    work = made(tmp_path / "work")
    run(PARAMS, **inputs, out=tmp_path / "whole", work=work, store=store)
    blocks = sorted((work / "blocks").iterdir())
    assert [path.name for path in blocks[:1] + blocks[-1:]] == ["evaluation-00000.npz", "seeds-00000.npz"]
    kept = blocks[2].stat().st_mtime_ns
    blocks[3].unlink()
    blocks[3].with_suffix(".tmp").write_bytes(b"half a block")
    run(PARAMS, **inputs, out=tmp_path / "resumed", work=work, store=store)
    assert blocks[2].stat().st_mtime_ns == kept
    for file in ("embeddings.json", "blobs.json", "pool.parquet", "seeds.parquet", "evaluation.parquet"):
        assert (tmp_path / "whole" / file).read_bytes() == (tmp_path / "resumed" / file).read_bytes()


def test_manifest_that_does_not_fit_its_shard_is_refused(tmp_path: Path, store: Store, inputs: dict[str, Path]) -> None:
    rows = read_table(inputs["filter"] / "manifest.parquet", MANIFEST)
    rows[4] |= {"offset": rows[5]["offset"], "length": rows[5]["length"]}
    write_table(inputs["filter"] / "manifest.parquet", MANIFEST, rows)
    with pytest.raises(InputError, match="holds other bytes"):
        run(PARAMS, **inputs, out=tmp_path / "out", work=made(tmp_path / "work"), store=store)


def test_seeds_without_a_readable_image_are_refused(tmp_path: Path, store: Store, inputs: dict[str, Path]) -> None:
    (tmp_path / "junk" / "a").mkdir(parents=True)
    (tmp_path / "junk" / "a" / "0.jpg").write_bytes(b"junk")
    inputs["seeds"] = tmp_path / "junk"
    with pytest.raises(InputError, match="none of the 1 images of seeds can be read"):
        run(PARAMS, **inputs, out=tmp_path / "out", work=made(tmp_path / "work"), store=store)


def test_damaged_descriptors_are_refused(embedded: tuple[Path, Summary], store: Store) -> None:
    out, _ = embedded
    write_table(out / "pool.parquet", EMBEDDED, read_embedded(out, "pool")[1:])
    with pytest.raises(InputError, match="30 copy descriptors for 29 images"):
        read_descriptors(out, "pool", "copy", store)
    write_json(out / "embeddings.json", {})
    with pytest.raises(InputError, match="does not list copy descriptors"):
        read_descriptors(out, "pool", "copy", store)


def test_copy_params_are_told_apart_by_kind() -> None:
    values = PARAMS.model_dump() | {"copy_descriptor": {"kind": "thumbnail", "path": "sscd.pt"}}
    with pytest.raises(InputError, match=r"copy_descriptor\.thumbnail"):
        validate(EmbedParams, values, where="params.yaml: embed")


def deduplicated(kept: Path, embed: Path, out: Path, store: Store) -> Summary:
    """The dedup stage, at a cosine of 0.9."""
    params = DedupParams(
        min_cosine=0.9, evaluation_sets={"all": EvaluationSet(folder="", min_cosine=0.9)}, method="exact",
        min_recall=0.99, sample_rows=8, seed=0, block_rows=16, device="cpu", precision="fp32", warn_component_share=0.5,
    )  # fmt: skip
    values = {"params": params, "filter": kept, "embed": embed, "work": out.with_name("dedup-work"), "store": store}
    for phase in PHASES:
        make_parts(phase, values, first=0, of=1)
    return run_dedup(params, filter=kept, embed=embed, out=out, work=values["work"], store=store)


def test_dedup_of_what_embed_wrote(
    tmp_path: Path, embedded: tuple[Path, Summary], store: Store, inputs: dict[str, Path]
) -> None:
    out = tmp_path / "dedup"
    summary = deduplicated(inputs["filter"], embedded[0], out, store)
    pool, seeds, evaluation = (read_embedded(embedded[0], name) for name in ("pool", "seeds", "evaluation"))
    removed = {row["id"]: row for row in read_table(out / "removed.parquet", REMOVED)}
    assert {pool[number]["id"] for number in (20, 21, 22)} == set(removed)
    found = [(removed[pool[i]["id"]]["reason"], removed[pool[i]["id"]]["witness_id"]) for i in (20, 21, 22)]
    assert found == [("copy", pool[3]["id"]), ("copy", seeds[1]["id"]), ("evaluation_copy:all", evaluation[2]["id"])]
    assert all(row["cosine"] > 0.9 for row in removed.values())
    kept = [row["id"] for row in read_table(out / "manifest.parquet", MANIFEST)]
    assert kept == [row["id"] for i, row in enumerate(pool) if i not in (20, 21, 22)]
    assert (summary.num_in, summary.num_kept, summary.dropped) == (30, 27, {"copy": 2, "evaluation_copy:all": 1})


def test_dedup_that_leaves_nothing_is_refused(
    tmp_path: Path, embedded: tuple[Path, Summary], store: Store, inputs: dict[str, Path]
) -> None:
    for name in ("seeds", "pool"):
        write_table(embedded[0] / f"{name}.parquet", EMBEDDED, read_embedded(embedded[0], "evaluation"))
    blobs = {"copy": _first_copy_block(embedded[0])}
    write_json(embedded[0] / "embeddings.json", dict.fromkeys(("pool", "seeds", "evaluation"), blobs))
    write_table(inputs["filter"] / "manifest.parquet", MANIFEST, read_embedded(embedded[0], "evaluation"))
    with pytest.raises(InputError, match="no image of the seeds is left after dedup"):
        deduplicated(inputs["filter"], embedded[0], tmp_path / "dedup", store)


def _first_copy_block(embed: Path) -> list[str]:
    return json.loads((embed / "embeddings.json").read_text())["evaluation"]["copy"]
