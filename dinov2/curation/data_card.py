"""A data card of the curated set, in Markdown, written from the stages' records and tables alone.

Every number is a stage's own, or counted here from the curated manifest; what a stage did not record is said to be
unknown. The same outputs give the same card.

Run:   python -m dinov2.curation.data_card [--data data] > card.md
Cost:  one pass over the curated manifest; memory for the names of hosts and labels
"""

import argparse
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

from dinov2.curation.crawl.optout import is_opt_out
from dinov2.lookup import batches, read_metrics, read_record
from dinov2.params import InputError, flatten
from dinov2.render import rendered

FUNNEL = ("crawl", "download", "filter", "embed", "dedup", "retrieve")
STAGES = (*FUNNEL[:3], "bootstrap", *FUNNEL[3:])
NUM_LISTED = 15  # hosts, sources
QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
LARGEST_PX = 65536  # of a side; larger ones count as this


class Step(NamedTuple):
    """A stage of the funnel."""

    stage: str
    num_in: int
    num_kept: int
    dropped: list[tuple[str, int]]
    """Most frequent first."""


class Mixture(NamedTuple):
    """What the curated manifest holds."""

    num: int
    num_bytes: int
    num_shards: int
    num_unsized: int
    origins: list[tuple[str, int]]
    kinds: list[tuple[str, int]]
    sources: list[tuple[str, int]]
    num_sources: int
    num_without_source: int
    hosts: list[tuple[str, int]]
    num_hosts: int
    sides: dict[str, list[int]]
    """Quantiles of width, height and shorter side."""


def data_card(outputs: Mapping[str, Path]) -> str:
    """The card. Raises InputError if `retrieve` has no output, which is what the card is about."""
    records = {stage: record for stage in STAGES if stage in outputs and (record := read_record(outputs[stage]))}
    if "retrieve" not in records:
        raise InputError(f"{outputs.get('retrieve', 'data/retrieve')} has no record.json; run retrieve (dvc repro)")
    metrics = {stage: read_metrics(outputs[stage]) for stage in records}
    params = {stage: record["params"] for stage, record in records.items()}
    steps = [_step(stage, records[stage]) for stage in FUNNEL if stage in records]
    return rendered(
        "dinov2.curation.looking", "data_card.md.j2",
        filters={"cell": _cell, "flat": _texts, "share": _share, "number": _number},
        records=records, metrics=metrics, params=params, steps=steps, mixture=_mixture(outputs["retrieve"]),
        gaps=_gaps(steps), opt_outs=_opt_outs(steps), unknown=[stage for stage in FUNNEL if stage not in records],
        limits=list(_limits(params, metrics, steps)), quantiles=QUANTILES,
    )  # fmt: skip


def _step(stage: str, record: dict[str, Any]) -> Step:
    counts = record["counts"]
    dropped = [(reason, num) for reason, num in _most(counts["dropped"]) if num]
    return Step(stage, counts["num_in"], counts["num_kept"], dropped)


def _gaps(steps: list[Step]) -> list[str]:
    """Where counts don't add up; empty where they do, to the image."""
    gaps = []
    for step in steps:
        missing = step.num_in - step.num_kept - sum(num for _, num in step.dropped)
        if missing:
            gaps.append(f"{step.stage}: {missing:+,} images are neither kept nor dropped")
    for before, after in pairwise(steps):
        if before.num_kept != after.num_in:
            gaps.append(f"{before.stage} kept {before.num_kept:,}, {after.stage} was given {after.num_in:,}")
    return gaps


def _opt_outs(steps: list[Step]) -> list[tuple[str, str, int]]:
    return [(step.stage, reason, num) for step in steps for reason, num in step.dropped if is_opt_out(reason)]


def _mixture(retrieve: Path) -> Mixture:
    table = retrieve / "manifest.parquet"
    names = {"origin", "mime", "source", "host", "shard"}
    counts: dict[str, Counter[str]] = {name: Counter() for name in names}
    sides = {name: np.zeros(LARGEST_PX + 1, np.int64) for name in ("width", "height", "shorter side")}
    num_bytes, num_unsized = 0, 0
    columns = ["origin", "mime", "source", "url", "shard", "length", "width", "height"]
    for batch in batches(table, columns):
        for name in names - {"host"}:
            counts[name].update(value for value in batch[name].to_pylist() if value is not None)
        counts["host"].update(host for url in batch["url"].to_pylist() if url and (host := urlsplit(url).hostname))
        num_bytes += int(batch["length"].to_numpy(zero_copy_only=False).sum())
        both = np.stack([batch[name].fill_null(-1).to_numpy(zero_copy_only=False) for name in ("width", "height")])
        width, height = np.minimum(both[:, both.min(axis=0) >= 0], LARGEST_PX).astype(np.int64)
        num_unsized += both.shape[1] - len(width)
        for name, values in (("width", width), ("height", height), ("shorter side", np.minimum(width, height))):
            sides[name] += np.bincount(values, minlength=LARGEST_PX + 1)
    return Mixture(
        num=counts["origin"].total(), num_bytes=num_bytes, num_shards=len(counts["shard"]), num_unsized=num_unsized,
        origins=_most(counts["origin"]), kinds=_most(counts["mime"]), sources=_most(counts["source"])[:NUM_LISTED],
        num_sources=len(counts["source"]), num_without_source=counts["origin"].total() - counts["source"].total(),
        hosts=_most(counts["host"])[:NUM_LISTED], num_hosts=len(counts["host"]),
        sides={name: _quantiles(histogram) for name, histogram in sides.items()},
    )  # fmt: skip


def _most(counter: Mapping[str, int]) -> list[tuple[str, int]]:
    return sorted(counter.items(), key=lambda item: (-item[1], item[0]))


def _quantiles(histogram: NDArray[np.int64]) -> list[int]:
    """The least value that at least each share of the images does not exceed."""
    until = np.cumsum(histogram)
    if until[-1] == 0:
        return []
    return [int(np.searchsorted(until, max(1, np.ceil(share * until[-1])))) for share in QUANTILES]


def _limits(
    params: Mapping[str, dict[str, Any]], metrics: Mapping[str, dict[str, Any]], steps: list[Step]
) -> Iterator[str]:
    """What the records themselves say is weak."""
    look = params.get("filter", {})
    for key, what in (("nsfw", "unsafe images"), ("faces", "faces")):
        if look.get(key) is None:
            yield f"Nothing looked for {what} (`filter.{key}` is off)."
    if params.get("embed", {}).get("copy_descriptor", {}).get("kind") == "thumbnail":
        yield "Copies were found by whitened thumbnails, not by a copy detection network (`embed.copy_descriptor`)."
    recall = metrics.get("dedup", {}).get("pair_recall")
    if recall is None:
        yield "The recall of dedup's pairs is not recorded."
    elif recall < 1:
        yield f"Dedup found {_share(recall)} of the pairs of copies, as measured on a sample."
    if not any(step.stage in ("crawl", "download") for step in steps):
        yield "Where the images come from is not recorded."
    if not _opt_out_params(params):
        yield "No stage's params name an opt-out that was looked for."
    yield "No licence of an image is recorded: the manifest has its URL and page, and no column for a licence."


def _opt_out_params(params: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    return {stage: values["opt_out"] for stage, values in params.items() if values.get("opt_out") is not None}


def _texts(values: object) -> dict[str, str]:
    """Nested values as {dotted.key: text}; null is `off`, as switches are."""
    return {key: _text(value) for key, value in flatten(values).items()}


def _text(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return "off" if value is None else str(value) or "(empty)"


def _cell(value: object) -> str:
    """Text that stays within a cell of a Markdown table."""
    return " ".join(str(value).split()).replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")


def _share(value: float | int) -> str:
    return f"{100 * value:.2f} %" if 0 < value < 1 else f"{100 * value:.0f} %"


def _number(value: float | int) -> str:
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:,.4g}"


def main(arguments: list[str] | None = None) -> int:
    """Exit code 2 with one sentence where there is no curated set."""
    parser = argparse.ArgumentParser(
        "python -m dinov2.curation.data_card", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=Path("data"), metavar="FOLDER", help="outputs of the stages")
    options = parser.parse_args(arguments)
    try:
        sys.stdout.write(data_card({stage: options.data / stage for stage in STAGES}))
    except InputError as error:
        sys.stderr.write(f"data_card: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
