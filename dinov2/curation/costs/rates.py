"""Rates that a plan turns work into hours by: measured ones from the committed table, assumed ones from the options."""

from pathlib import Path
from typing import NamedTuple

from dinov2.curation.costs.sizes import GPUS, Assumed, Machines
from dinov2.params import InputError

TABLE = Path(__file__).resolve().parents[3] / "benchmarks" / "results" / "curation_rates.md"


class Rates(NamedTuple):
    """Per second."""

    crawl: float
    """Pages, a core."""
    download: float
    """Images, a core."""
    filter: float
    """Images, a core."""
    embed: float
    """Images, a core."""
    core_flops: float
    gpu_flops: float
    network: float
    """Bytes, a node."""
    storage: float
    """Bytes, a node."""
    sources: list[str]
    """A line a rate: what it is and whether it was measured or is assumed."""


def read_rates(assumed: Assumed, machines: Machines) -> Rates:
    """Measured rates from benchmarks/results/curation_rates.md; they are of photographs of 0.19 megapixels."""
    measured = _table()
    scale = assumed.megapixels / measured_megapixels()
    per_core = {name: measured[name] / scale for name in ("filter", "embed")}
    gpu = GPUS[assumed.gpu]
    where = f"benchmarks/results/{TABLE.name}"
    sources = [
        f"measured ({where}): {measured['crawl']:,.0f} pages and {measured['download']:,.0f} downloads out of WARC "
        "files a second and core",
        f"measured ({where}): {per_core['filter']:,.0f} images filtered and {per_core['embed']:,.0f} decoded for "
        f"embedding a second and core, at {assumed.megapixels:g} megapixels each",
        f"measured ({where}): {measured['fp32']:,.0f} GFLOP/s of products a core",
        f"assumed: storage gives and takes {assumed.storage_gb_s:g} GB/s a node, the public network "
        f"{assumed.network_gbit:g} Gbit/s",
    ]
    if machines.gpus:
        sources.append(
            f"assumed: products reach {assumed.peak_share:g} of the {gpu.tflops:g} TFLOP/s on the data sheet of the "
            f"{assumed.gpu}; none was measured"
        )
    return Rates(
        crawl=measured["crawl"], download=measured["download"], **per_core, core_flops=measured["fp32"] * 1e9,
        gpu_flops=gpu.tflops * 1e12 * assumed.peak_share, network=assumed.network_gbit * 1e9 / 8,
        storage=assumed.storage_gb_s * 1e9, sources=sources,
    )  # fmt: skip


def measured_megapixels() -> float:
    """Size of the photographs that the rates were measured on."""
    return 500 * 375 / 1e6


def _table() -> dict[str, float]:
    """The rows of the committed table. Raises InputError if it is not there: plans are made in a checkout."""
    try:
        lines = TABLE.read_text().splitlines()
    except OSError as error:
        raise InputError(f"{TABLE} can't be read ({error.strerror}); plan from a checkout of the repository") from error
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")]
    return {name: float(value) for name, value, _ in cells[1:]}
