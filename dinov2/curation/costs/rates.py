"""Rates that a plan turns work into hours by: measured ones from the committed table, assumed ones from the options."""

from pathlib import Path
from typing import NamedTuple

from dinov2.curation.costs.sizes import Assumed
from dinov2.gpus import GPUS
from dinov2.params import InputError

TABLE = Path(__file__).resolve().parents[3] / "benchmarks" / "results" / "curation_rates.md"
MEASURED_MEGAPIXELS = 500 * 375 / 1e6  # of the images that the table was measured on


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
    join_flops: float
    """A core, in dedup as a whole."""
    core_flops: float
    """A core, in products alone."""
    gpu_flops: float
    network: float
    """Bytes, a node."""
    storage: float
    """Bytes, a node."""
    sources: dict[str, str]
    """What each rate is, and whether it was measured or is assumed; by stage, or by what it is a rate of."""


def read_rates(assumed: Assumed) -> Rates:
    """Measured rates from benchmarks/results/curation_rates.md; of images, in proportion to their pixels."""
    table = _table()
    scale = assumed.megapixels / MEASURED_MEGAPIXELS
    looked, decoded, gpu = table["filter"] / scale, table["embed"] / scale, GPUS[assumed.gpu]
    measured = f"measured (benchmarks/results/{TABLE.name})"
    at = f"a second and core, at {assumed.megapixels:g} megapixels each"
    sources = {
        "crawl": f"{measured}: {table['crawl']:,.0f} pages a second and core",
        "download": f"{measured}: {table['download']:,.0f} images a second and core, out of WARC files",
        "filter": f"{measured}: {looked:,.0f} images looked at {at}, without NSFW and faces",
        "embed": f"{measured}: {decoded:,.0f} images decoded for embedding {at}",
        "dedup": f"{measured}: {table['dedup']:,.0f} GFLOP/s a core that does the exact join",
        "cores": f"{measured}: {table['fp32']:,.0f} GFLOP/s of products a core",
        "GPUs": f"assumed, as no GPU was at hand: {assumed.peak_share:g} of the {gpu.peak_tflops:g} TFLOP/s that the "
        f"{assumed.gpu}'s data sheet has",
        "gathering": "measured (benchmarks/results/gather_memory.md): memory and seconds of the lone jobs that gather "
        "crawl's URLs and filter's hashes",
        "storage": f"assumed: the store gives and takes {assumed.storage_gb_s:g} GB/s a node",
        "network": f"assumed: {assumed.network_gbit:g} Gbit/s a node from the public network, and hosts that give it",
    }
    return Rates(
        crawl=table["crawl"], download=table["download"], filter=looked, embed=decoded,
        join_flops=table["dedup"] * 1e9, core_flops=table["fp32"] * 1e9,
        gpu_flops=gpu.peak_tflops * 1e12 * assumed.peak_share, network=assumed.network_gbit * 1e9 / 8,
        storage=assumed.storage_gb_s * 1e9, sources=sources,
    )  # fmt: skip


def _table() -> dict[str, float]:
    """The rows of the committed table. Raises InputError if it is not there: plans are made in a checkout."""
    try:
        lines = TABLE.read_text().splitlines()
    except OSError as error:
        raise InputError(f"{TABLE} can't be read ({error.strerror}); plan from a checkout of the repository") from error
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")]
    return {name: float(value) for name, value, _ in cells[1:]}
