"""What a plan of the curation counts with: the user's own numbers, the params, and the machines.

Sections of the params file are read as plain values, so that a plan needs none of the stages' code: each has been
validated by whoever asks for the plan. A value that a stage's params do not have is assumed, and told as assumed.
"""

from pathlib import Path
from typing import Any, NamedTuple

from dinov2.gpus import GPUS
from dinov2.params import InputError, read_yaml

SSCD_DIMS = 512
SSCD_GFLOP_PER_MP = 164.0
"""ResNet-50: 4.1 G multiplications at 224 x 224, two operations each, in proportion to the pixels."""
THUMBNAIL_GFLOP = 0.001
LONGER_SIDE = 4 / 3  # of the shorter one, to which SSCD scales an image


class Assumed(NamedTuple):
    """What a plan of the curation takes for granted.

    images: how many the stage is given; every stage is planned for all of them, as if none was dropped before.
    seeds, evaluation: curated images; images that nothing may copy.
    image_kb, megapixels: mean size of an image.
    page_kb, images_per_page: mean size of a page's HTML, and the images that it alone shows.
    nodes, cores, gpus: machines, and cores and GPUs of each; default: what launch gives the stage.
    gpu: A100, H100 or H200.
    peak_share: share of a GPU's peak that products reach.
    network_gbit, storage_gb_s: of a node, from the public network, and from and to the store (gigabytes a second).
    crawl_mb: of pages, in a part of crawl; default: crawl.part_mb, or one part.
    part_images: images of a part of download, filter and embed; default: what the params say, or one part.
    block_rows: rows of a block of descriptors in dedup; default: dedup.block_rows, or all.
    sample_rows: images that dedup compares with all to measure its recall; default: dedup.sample_rows, or none.
    copy_dims, semantic_dims: of the descriptors; default: from the params.
    semantic_gflop: of the backbone, an image; default: counted from bootstrap.model.
    with_copies: share of the images that have a copy.
    chosen: share of the images that is retrieved.
    """

    images: float = 1e6
    seeds: float = 1e5
    evaluation: float = 1e5
    image_kb: float = 110.0
    megapixels: float = 0.2
    page_kb: float = 60.0
    images_per_page: float = 10.0
    nodes: int | None = None
    cores: int | None = None
    gpus: int | None = None
    gpu: str = "A100"
    peak_share: float = 0.4
    network_gbit: float = 10.0
    storage_gb_s: float = 1.0
    crawl_mb: float | None = None
    part_images: int | None = None
    block_rows: int | None = None
    sample_rows: int | None = None
    copy_dims: int | None = None
    semantic_dims: int | None = None
    semantic_gflop: float | None = None
    with_copies: float = 0.3
    chosen: float = 0.1


class Machines(NamedTuple):
    """What works side by side."""

    nodes: int
    cores: int
    """Of a node."""
    gpus: int
    """Of a node."""
    workers: int
    """Jobs that share a stage's parts: elements of an array."""

    @property
    def processes(self) -> int:
        """One a GPU, or one a node; all share the parts."""
        return self.nodes * max(1, self.gpus)


class Sizes(NamedTuple):
    """Numbers of a curation. Rows of a part are 0 where the stage's work does not divide."""

    assumed: Assumed
    copy_dims: int
    copy_gflop: float
    semantic_dims: int
    semantic_gflop: float
    hash_bytes: int
    block_rows: int
    embed_rows: int
    filter_rows: int
    sample_rows: int
    num_clusters: int
    num_iterations: int
    neighbors: int
    record_rows: int
    host_parts: int
    connections: int
    max_image_bytes: int
    crawl_mb: float
    shard_mb: int


def read_sizes(file: Path, assumed: Assumed) -> Sizes:
    """Sizes by the params file and the options. Raises InputError for an option out of range."""
    _check(assumed)
    values = read_yaml(file)
    copy = _value(values, "embed", "copy_descriptor")
    is_sscd = isinstance(copy, dict) and copy.get("kind") == "sscd"
    copy_mp = _value(values, "embed", "copy_descriptor", "size_px") ** 2 * LONGER_SIDE / 1e6
    model = _value(values, "bootstrap", "model") or {}
    politeness = _value(values, "download", "politeness")
    return Sizes(
        assumed=assumed,
        copy_dims=assumed.copy_dims or _value(values, "embed", "copy_descriptor", "dims") or SSCD_DIMS,
        copy_gflop=SSCD_GFLOP_PER_MP * copy_mp if is_sscd else THUMBNAIL_GFLOP,
        semantic_dims=assumed.semantic_dims or model["dim"],
        semantic_gflop=vit_gflop(model) if assumed.semantic_gflop is None else assumed.semantic_gflop,
        hash_bytes=_value(values, "filter", "pca_hash", "num_bits") // 8,
        block_rows=assumed.block_rows or _value(values, "dedup", "block_rows") or 0,
        embed_rows=assumed.part_images or _value(values, "embed", "block_rows"),
        filter_rows=assumed.part_images or _value(values, "filter", "part_images") or 0,
        record_rows=assumed.part_images or _value(values, "download", "records_per_part") or 0,
        host_parts=_value(values, "download", "num_parts"),
        connections=politeness["max_hosts"] * politeness["max_per_host"],
        max_image_bytes=_value(values, "download", "max_bytes"),
        crawl_mb=assumed.crawl_mb or _value(values, "crawl", "part_mb") or 0,
        sample_rows=assumed.sample_rows or _value(values, "dedup", "sample_rows") or 0,
        shard_mb=_value(values, "retrieve", "shard_mb"),
        num_clusters=_value(values, "retrieve", "clusters", "num_clusters"),
        num_iterations=_value(values, "retrieve", "clusters", "num_iterations"),
        neighbors=_value(values, "retrieve", "choose", "num_neighbors") or 0,
    )


def vit_gflop(model: dict[str, Any]) -> float:
    """Forward of a vision transformer, one image: products of its tokens with weights, and attention."""
    side = model["image_size_px"] // model["patch_size"]
    tokens, dim = side * side + 1 + model["num_registers"], model["dim"]
    embed = 2 * side * side * dim * 3 * model["patch_size"] ** 2
    block = 2 * tokens * 12 * dim * dim + 4 * tokens * tokens * dim
    return (embed + model["depth"] * block) / 1e9


def _value(values: object, *path: str) -> Any:
    """A value deep in a mapping; None where there is none."""
    for key in path:
        values = values.get(key) if isinstance(values, dict) else None
    return values


def _check(assumed: Assumed) -> None:
    for name, value in assumed._asdict().items():
        if isinstance(value, float | int) and (value < 0 or (value == 0 and name != "gpus")):
            raise InputError(f"--{name} is {value:g}; take a number above 0")
    for name in ("peak_share", "with_copies", "chosen"):
        if getattr(assumed, name) > 1:
            raise InputError(f"--{name} is {getattr(assumed, name):g}, a share; take one up to 1")
    if assumed.gpu not in GPUS:
        raise InputError(f"--gpu is '{assumed.gpu}'; take one of {', '.join(GPUS)}")
