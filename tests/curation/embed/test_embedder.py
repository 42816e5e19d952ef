"""The embed stage: three sets, both descriptors, what is left out, resuming, and dedup on what it wrote."""

import hashlib
import json
import time
import warnings
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from dinov2.curation.descriptors import EMBEDDED, Kind, SetName, open_rows
from dinov2.curation.embed.embedder import Backbone, Block, lone_threads, middle, one_thread, save_block, unit
from dinov2.curation.embed.finish import repeated
from dinov2.curation.params import NetworkParams, OursParams, SSCDParams, ThumbnailParams
from dinov2.data.decode import decode_rgb
from dinov2.data.view import center_crop
from dinov2.hub import BackboneCard, load_backbone, save_backbone
from dinov2.models.params import ViTParams
from dinov2.models.vit import VisionTransformer
from dinov2.params import InputError, validate
from dinov2.records import MANIFEST, REMOVED, Summary, read_table, write_json, write_table
from dinov2.shards import ShardReader, ShardWriter
from dinov2.store import Store, StoreParams
from tasks.dedup import PHASES as DEDUP_PHASES
from tasks.dedup import DedupParams, EvaluationSet
from tasks.dedup import run as run_dedup
from tasks.embed import PHASES, EmbedParams, run
from tasks.fan_out import make_parts

THUMBNAIL = ThumbnailParams(kind="thumbnail", size_px=8, dims=24, shrinkage=0.1)
OURS = OursParams(kind="ours", precision="fp32")
PARAMS = EmbedParams(semantic=OURS, copy_descriptor=THUMBNAIL, block_rows=7, batch_size=3, shard_mb=1, may_be_empty=())
TABLES = (
    "embeddings.json", "blobs.json", "pool.parquet", "seeds.parquet", "evaluation.parquet", "removed/pool.parquet",
    "removed/seeds.parquet",
)  # fmt: skip


def embed(
    params: EmbedParams, inputs: dict[str, Path], *, out: Path, work: Path, store: Store, num_workers: int = 1
) -> Summary:
    """The stage, its parts shared by `num_workers`, the last one first."""
    values = {"params": params, "out": made(out), "work": made(work), "store": store, **inputs}
    for phase in PHASES:
        for worker in reversed(range(num_workers)):
            make_parts(phase, values, first=worker, of=num_workers)
    return run(**values)


def read_embedded(out: Path, name: SetName) -> list[dict[str, Any]]:
    """Samples of a set, in the order of its descriptors."""
    return read_table(out / f"{name}.parquet", EMBEDDED)


def described(out: Path, name: SetName, kind: Kind, store: Store) -> np.ndarray:
    """All descriptors of a set."""
    rows = open_rows(out, [name], kind, store)
    return rows.read(0, len(rows))


class ChannelMeans(torch.nn.Module):
    """Stands for a network: the mean of each channel."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.mean(dim=(2, 3))


class Bright(torch.nn.Module):
    """Stands for a network that fails on white: takes bytes, channels last; gives `value` there, else 1."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        bright = images.float().mean(dim=(1, 2))
        return torch.where(bright > 250, torch.full_like(bright, self.value), torch.ones_like(bright))


def save_torchscript(network: torch.nn.Module, path: Path) -> None:
    with warnings.catch_warnings():  # torch deprecates making such files; networks are released as them
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(network), str(path))


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
    return Store(StoreParams(url=str(tmp_path / "store"), cache=str(tmp_path / "cache"), remote=None))


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
    return out, embed(PARAMS, inputs, out=out, work=tmp_path / "work", store=store)


def test_descriptors_are_aligned_and_of_unit_length(embedded: tuple[Path, Summary], store: Store) -> None:
    out, summary = embedded
    sizes: dict[SetName, int] = {"pool": 30, "seeds": 4, "evaluation": 4}
    dimensions: dict[Kind, int] = {"copy": 24, "semantic": 16}
    for name, num in sizes.items():
        assert len(read_embedded(out, name)) == num
        for kind, dims in dimensions.items():
            vectors = described(out, name, kind, store)
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
    found = described(embedded[0], "evaluation", "semantic", store)[2]
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
    summary = embed(PARAMS, inputs, out=tmp_path / "out", work=tmp_path / "work", store=store)
    assert (summary.metrics["num_seeds"], summary.metrics["num_evaluation"]) == (4, 5)
    removed = read_table(tmp_path / "out" / "removed" / "seeds.parquet", REMOVED)
    assert ("b/deep.tiff", "format_not_packed") in {(row["url"], row["reason"]) for row in removed}


def made(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    return folder


def contents(out: Path) -> list[bytes]:
    return [(out / file).read_bytes() for file in TABLES]


def test_killed_run_goes_on_to_the_same_bytes(tmp_path: Path, store: Store, inputs: dict[str, Path]) -> None:
    work = tmp_path / "work"
    embed(PARAMS, inputs, out=tmp_path / "whole", work=work, store=store)
    blocks = sorted((work / "blocks").iterdir())
    assert [path.name for path in blocks[:1] + blocks[-1:]] == ["evaluation-000000.npz", "seeds-000000.npz"]
    kept = blocks[2].stat().st_mtime_ns
    for phase, part in (("embed", 2), ("finish", 4), ("finish", 5)):
        (work / "made" / phase / f"{part:06d}").unlink()
    blocks[3].unlink()  # the pool's third: numbers are pool, seeds, evaluation; files are in alphabetical order
    blocks[3].with_suffix(".tmp").write_bytes(b"half a block")
    next((work / "finished").glob("pool-000004*.json")).unlink()
    embed(PARAMS, inputs, out=tmp_path / "resumed", work=work, store=store)
    assert blocks[2].stat().st_mtime_ns == kept
    assert contents(tmp_path / "whole") == contents(tmp_path / "resumed")


def test_interrupted_at_any_rename_it_goes_on_to_the_same_bytes(
    tmp_path: Path, store: Store, inputs: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    embed(PARAMS, inputs, out=tmp_path / "whole", work=tmp_path / "work", store=store)
    rename = Path.replace
    left: list[int] = []

    def failing(self: Path, target: Path) -> Path:
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(Path, "replace", failing)
    for step in range(4):  # each start comes a little further than the last one
        left[:] = [4 + 3 * step]
        with pytest.raises(KeyboardInterrupt):
            embed(PARAMS, inputs, out=tmp_path / "resumed", work=tmp_path / "work-resumed", store=store)
    monkeypatch.undo()
    embed(PARAMS, inputs, out=tmp_path / "resumed", work=tmp_path / "work-resumed", store=store)
    assert contents(tmp_path / "whole") == contents(tmp_path / "resumed")


def test_number_of_workers_and_threads_changes_no_byte(tmp_path: Path, store: Store, inputs: dict[str, Path]) -> None:
    embed(PARAMS, inputs, out=tmp_path / "one", work=tmp_path / "work-one", store=store)
    torch.set_num_threads(3)
    try:
        embed(PARAMS, inputs, out=tmp_path / "many", work=tmp_path / "work-many", store=store, num_workers=3)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(1)
    assert contents(tmp_path / "one") == contents(tmp_path / "many")


def test_rows_whose_bytes_are_not_their_ids_are_left_out(
    tmp_path: Path, store: Store, inputs: dict[str, Path], caplog: pytest.LogCaptureFixture
) -> None:
    rows = read_table(inputs["filter"] / "manifest.parquet", MANIFEST)
    with store.local(rows[4]["shard"]).open("r+b") as shard:
        shard.seek(rows[4]["offset"] + 20)
        shard.write(b"another")
    rows[9] |= {"offset": 10**9}
    write_table(inputs["filter"] / "manifest.parquet", MANIFEST, rows)
    summary = embed(PARAMS, inputs, out=tmp_path / "out", work=tmp_path / "work", store=store)
    assert (summary.num_in, summary.num_kept, summary.dropped) == (30, 28, {"unreadable": 1, "wrong_bytes": 1})
    removed = read_table(tmp_path / "out" / "removed" / "pool.parquet", REMOVED)
    assert [(row["id"], row["reason"]) for row in removed] == [
        (rows[4]["id"], "wrong_bytes"), (rows[9]["id"], "unreadable")
    ]
    assert described(tmp_path / "out", "pool", "copy", store).shape == (28, 24)
    assert caplog.text.count(f"shard {rows[4]['shard']} does not hold what the manifest says") == 2  # one a block


def test_block_whose_index_does_not_match_the_shard_is_no_hindrance(
    tmp_path: Path, store: Store, inputs: dict[str, Path]
) -> None:
    rows = read_table(inputs["filter"] / "manifest.parquet", MANIFEST)
    for row in rows[7:14]:  # the second block
        row["length"] = 20
    write_table(inputs["filter"] / "manifest.parquet", MANIFEST, rows)
    summary = embed(PARAMS, inputs, out=tmp_path / "out", work=tmp_path / "work", store=store)
    assert (summary.num_in, summary.num_kept, summary.dropped) == (30, 23, {"unreadable": 7})
    assert len(json.loads((tmp_path / "out" / "embeddings.json").read_text())["pool"]["copy"]) == 4
    assert described(tmp_path / "out", "pool", "copy", store).shape == (23, 24)


def test_repeated_ids_of_the_pool_are_left_out_across_blocks(
    tmp_path: Path, store: Store, inputs: dict[str, Path]
) -> None:
    rows = read_table(inputs["filter"] / "manifest.parquet", MANIFEST)
    write_table(inputs["filter"] / "manifest.parquet", MANIFEST, [*rows, rows[0], rows[29], rows[0]])
    summary = embed(PARAMS, inputs, out=tmp_path / "out", work=tmp_path / "work", store=store)
    assert (summary.num_in, summary.num_kept, summary.dropped) == (33, 30, {"duplicate": 3})
    assert [row["id"] for row in read_embedded(tmp_path / "out", "pool")] == [row["id"] for row in rows]
    removed = read_table(tmp_path / "out" / "removed" / "pool.parquet", REMOVED)
    assert [row["witness_id"] for row in removed] == [rows[0]["id"], rows[29]["id"], rows[0]["id"]]


def test_repeated_ids_are_found_whatever_the_buckets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = np.random.default_rng(0).integers(0, 40, 100)
    ids = [hashlib.sha256(bytes([number])).hexdigest() for number in numbers]
    empty = np.empty((0, 0), np.float32)
    blocks = []
    for start in range(0, 100, 13):
        samples = [{"id": ids[i], "index": i} for i in range(start, min(start + 13, 100))]
        blocks.append(tmp_path / f"{start}.npz")
        save_block(blocks[-1], Block(samples, [], empty, empty), with_moments=False)
    expected = [i for i in range(100) if ids[i] in ids[:i]]
    for bucket_rows in (1000, 30, 7):
        monkeypatch.setattr("dinov2.curation.embed.finish.BUCKET_ROWS", bucket_rows)
        assert repeated(blocks, tmp_path, num_rows=100).tolist() == expected


def test_manifest_of_another_schema_is_refused(tmp_path: Path, store: Store, inputs: dict[str, Path]) -> None:
    table = pq.read_table(inputs["filter"] / "manifest.parquet")
    pq.write_table(table.drop_columns("offset"), inputs["filter"] / "manifest.parquet")
    with pytest.raises(InputError, match="has no column 'offset' of type int64"):
        embed(PARAMS, inputs, out=tmp_path / "out", work=tmp_path / "work", store=store)


def test_absent_shard_is_refused_before_any_work(tmp_path: Path, store: Store, inputs: dict[str, Path]) -> None:
    rows = read_table(inputs["filter"] / "manifest.parquet", MANIFEST)
    rows[7]["shard"] = "0" * 64 + ".tar"
    write_table(inputs["filter"] / "manifest.parquet", MANIFEST, rows)
    with pytest.raises(InputError, match="needs 1 blobs that are absent"):
        embed(PARAMS, inputs, out=tmp_path / "out", work=tmp_path / "work", store=store)
    assert not (tmp_path / "work" / "blocks").exists()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.0])
def test_images_without_a_descriptor_are_left_out(
    tmp_path: Path, store: Store, inputs: dict[str, Path], value: float
) -> None:
    path = tmp_path / "dark.pt"
    save_torchscript(Bright(value), path)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    network = SSCDParams(kind="sscd", path=str(path), sha256=sha256, resize="square", size_px=32, input="uint8_nhwc")
    picture = Image.new("RGB", (40, 40), (255, 255, 255))
    rows = read_table(inputs["filter"] / "manifest.parquet", MANIFEST)
    with ShardWriter(store, tmp_path / "white", shard_mb=1) as writer:
        about = {**rows[0], "width": 40, "height": 40}
        writer.add(save(picture, tmp_path / "white.jpg"), about)
    write_table(inputs["filter"] / "manifest.parquet", MANIFEST, [*rows[:10], *writer.rows, *rows[10:]])
    params = PARAMS.model_copy(update={"copy_descriptor": network})
    summary = embed(params, inputs, out=tmp_path / "out", work=tmp_path / "work", store=store)
    assert (summary.num_in, summary.num_kept, summary.dropped) == (31, 30, {"no_descriptor": 1})
    assert writer.rows[0]["id"] not in {row["id"] for row in read_embedded(tmp_path / "out", "pool")}
    assert described(tmp_path / "out", "pool", "copy", store).shape == (30, 3)


def test_semantic_descriptors_of_a_network_in_a_file(tmp_path: Path, store: Store, inputs: dict[str, Path]) -> None:
    path = tmp_path / "means.pt"
    save_torchscript(ChannelMeans(), path)
    network = NetworkParams(
        kind="torchscript", path=str(path), sha256=hashlib.sha256(path.read_bytes()).hexdigest(), resize="short_side",
        size_px=37, interpolation="bicubic", crop_px=32, input="float_nchw", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5),
    )  # fmt: skip
    params = PARAMS.model_copy(update={"semantic": network})
    embed(params, inputs, out=tmp_path / "out", work=tmp_path / "work", store=store)
    found = described(tmp_path / "out", "evaluation", "semantic", store)[1]
    image = decode_rgb((inputs["evaluation"] / "a" / "1.jpg").read_bytes())
    expected = 2 * center_crop(image, 32).float().numpy().mean(axis=(1, 2)) / 255 - 1  # by way of 37 px, too
    np.testing.assert_allclose(found, expected / np.linalg.norm(expected), atol=2e-3)


def test_a_new_thread_computes_alone() -> None:
    matrix = torch.randn(600, 600)

    def seconds(_: int) -> tuple[float, float]:
        process, thread = time.process_time(), time.thread_time()
        for _ in range(20):
            torch.mm(matrix, matrix)
        return time.process_time() - process, time.thread_time() - thread

    torch.set_num_threads(2)
    try:
        with one_thread(), lone_threads(1) as threads:
            process, thread = next(threads.map(seconds, [0]))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
    assert process < 1.3 * thread + 0.02


def test_strips_are_described_by_their_middle() -> None:
    image = np.zeros((2, 100, 3), np.uint8)
    image[:, 42:58] = 1
    assert middle(image).tolist() == np.ones((2, 16, 3)).tolist()
    assert middle(image.transpose(1, 0, 2)).shape == (16, 2, 3)
    assert middle(image[:, :16]).shape == (2, 16, 3)


def test_seeds_without_a_readable_image_are_refused(tmp_path: Path, store: Store, inputs: dict[str, Path]) -> None:
    (tmp_path / "junk" / "a").mkdir(parents=True)
    (tmp_path / "junk" / "a" / "0.jpg").write_bytes(b"junk")
    inputs["seeds"] = tmp_path / "junk"
    with pytest.raises(InputError, match=r"none of the images of seeds can be embedded \(1 format_not_packed\)"):
        embed(PARAMS, inputs, out=tmp_path / "out", work=tmp_path / "work", store=store)


def test_damaged_descriptors_are_refused(embedded: tuple[Path, Summary], store: Store) -> None:
    out, _ = embedded
    write_table(out / "pool.parquet", EMBEDDED, read_embedded(out, "pool")[1:])
    with pytest.raises(InputError, match="30 copy descriptors for 29 images"):
        described(out, "pool", "copy", store)
    write_json(out / "embeddings.json", {})
    with pytest.raises(InputError, match="does not list copy descriptors"):
        described(out, "pool", "copy", store)


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
    for phase in DEDUP_PHASES:
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


@pytest.mark.gpu
def test_backbone_on_a_gpu_equals_the_cpu(inputs: dict[str, Path]) -> None:
    images = [np.asarray(picture(number)) for number in range(5)]
    rows = []
    for device in ("cpu", "cuda"):
        encoder = Backbone(inputs["bootstrap"], bfloat16=False, device=torch.device(device), turn=nullcontext())
        rows.append(unit(encoder.encode([encoder.prepare(image) for image in images]))[0])
    np.testing.assert_allclose(rows[1], rows[0], atol=2e-3)
