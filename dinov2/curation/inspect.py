"""A page to set the numbers of curation by: seeds and their neighbours, copies around the thresholds, what was removed.

One HTML file that needs nothing else; thumbnails are JPEG data URIs. It is made from the tables and descriptors on
disk, a block at a time, and shows a fixed number of images, so that its size does not grow with the data. Stages that
have no output yet are left out by name.

Run:   python -m dinov2.curation.inspect [--data data] [--evaluation inputs/demo/evaluation] --out inspect.html
Cost:  one pass over the tables and over at most `retrieve.inspect.max_rows` descriptors of each kind; no GPU, no torch
"""

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.dataset as ds

from dinov2.album import Album
from dinov2.curation.looking.borderline import Borderline, borderlines, thresholds
from dinov2.curation.looking.neighborhoods import Neighborhoods, neighborhoods
from dinov2.curation.params import InspectParams
from dinov2.lookup import Row, num_rows, read_record, sample_by
from dinov2.params import InputError, load_section, read_yaml, validate
from dinov2.render import rendered
from dinov2.store import Store, StoreParams

STAGES = ("crawl", "download", "filter", "embed", "dedup", "retrieve")
REMOVED_BY = (  # title, stage, table of what was removed, table of what was kept
    ("crawl", "crawl", "removed", "records"),
    ("download", "download", "removed", "manifest"),
    ("filter", "filter", "removed", "manifest"),
    *((f"embed, {name}", "embed", f"removed/{name}", name) for name in ("pool", "seeds", "evaluation")),
    ("dedup", "dedup", "removed", "manifest"),
    ("dedup, seeds", "dedup", "seeds_removed", "seeds"),
    ("retrieve", "retrieve", "removed", "manifest"),
)


class Group(NamedTuple):
    """Some of what a stage removed for one reason: images, or URLs that there are no bytes of."""

    title: str
    """Of the stage, and of the set where it has several."""
    reason: str
    num: int
    share: float
    """Of what the stage was given."""
    rows: list[Row]


def inspection_page(
    params: InspectParams,
    outputs: Mapping[str, Path],
    store: Store,
    *,
    choose: Mapping[str, Any] | None = None,
    dedup_params: Mapping[str, Any] | None = None,
    folders: tuple[Path, ...] = (),
) -> str:
    """The page as HTML. `outputs` has the folder of each stage; `folders` hold evaluation images as files.

    `choose` and `dedup_params` are the params of retrieve.choose and dedup; from the stages' records where not given.
    """
    outputs = {stage: folder for stage, folder in outputs.items() if folder.is_dir()}
    if not outputs:
        raise InputError("there is no stage's output to look at; give the folder that holds filter/, embed/ and so on")
    choose = choose or _params_of(outputs, "retrieve").get("choose")
    joined = dedup_params or _params_of(outputs, "dedup")
    missing = [stage for stage in ("filter", "embed", "dedup", "retrieve") if stage not in outputs]
    lines: list[Borderline] = []
    seeds: Neighborhoods | None = None
    if {"embed", "dedup"} <= set(outputs) and joined:
        lines = borderlines(
            params, thresholds(joined), embed=outputs["embed"], dedup=outputs["dedup"], store=store
        )
    if {"embed", "dedup", "retrieve"} <= set(outputs) and choose is not None:
        seeds = neighborhoods(
            params, embed=outputs["embed"], dedup=outputs["dedup"], retrieve=outputs["retrieve"], store=store,
            choose=choose,
        )
    groups = _groups(params, outputs)
    with Album(store, outputs, params.thumbnail_px, folders) as album:
        album.find(_shown(seeds, lines, groups))
        return rendered(
            "dinov2.curation.looking", "inspect.html.j2", params=params, size_px=params.thumbnail_px, seeds=seeds,
            choose=choose, borderlines=lines, groups=groups, missing=missing, photo=album.thumbnail,
        )  # fmt: skip


def _params_of(outputs: Mapping[str, Path], stage: str) -> dict[str, Any]:
    record = read_record(outputs[stage]) if stage in outputs else None
    return record["params"] if record else {}


def _groups(params: InspectParams, outputs: Mapping[str, Path]) -> list[Group]:
    """Of every reason of every stage some of what was removed, most frequent first.

    Copies in the pool have their own part. What has the bytes of another image is not shown: it would look like it.
    """
    groups = []
    for title, stage, removed, kept in REMOVED_BY:
        if stage not in outputs:
            continue
        reasons = sample_by(outputs[stage] / f"{removed}.parquet", "reason", params.num_removed, params.seed)
        not_seeds = ds.field("origin") != "seed" if stage == "retrieve" else None
        given = num_rows(outputs[stage] / f"{kept}.parquet", not_seeds) + sum(num for num, _ in reasons.values())
        for reason, (num, rows) in sorted(reasons.items(), key=lambda item: (-item[1][0], item[0])):
            is_copy = title == "dedup" and (reason == "copy" or reason.startswith("evaluation_copy"))
            if not is_copy and not all(row["id"] and row["id"] == row["witness_id"] for row in rows):
                groups.append(Group(title, reason, num, num / given, rows))
    return groups


def _shown(seeds: Neighborhoods | None, lines: list[Borderline], groups: list[Group]) -> set[str]:
    """Ids of all images on the page."""
    ids: set[str | None] = set()
    for panel in seeds.panels if seeds else []:
        ids |= {panel.id, *(near.id for near in panel.neighbors), *(near.witness_id for near in panel.neighbors)}
    for line in lines:
        ids |= {image for pair in line.kept + line.removed for image in (pair.id, pair.witness_id)}
    for group in groups:
        ids |= {image for row in group.rows for image in (row["id"], row["witness_id"])}
    return {image for image in ids if image is not None}


def main(arguments: list[str] | None = None) -> int:
    """Exit code 2 with one sentence for a person's mistake."""
    parser = argparse.ArgumentParser(
        "python -m dinov2.curation.inspect", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=Path("data"), metavar="FOLDER", help="outputs of the stages")
    parser.add_argument("--evaluation", type=Path, metavar="FOLDER", help="their images; default: inputs.evaluation")
    parser.add_argument("--params", type=Path, default=Path("params.yaml"), metavar="FILE")
    parser.add_argument("--out", type=Path, required=True, metavar="HTML")
    options = parser.parse_args(arguments)
    try:
        values = _value(options.params, "retrieve", "inspect")
        params = validate(InspectParams, values, where=f"{options.params.name}: retrieve.inspect")
        evaluation = options.evaluation or Path(str(_value(options.params, "inputs", "evaluation")))
        store = Store(load_section(options.params, "store", StoreParams))
        outputs = {stage: options.data / stage for stage in STAGES}
        options.out.write_text(inspection_page(params, outputs, store, folders=(evaluation,)))
    except InputError as error:
        sys.stderr.write(f"inspect: {error}\n")
        return 2
    return 0


def _value(file: Path, section: str, key: str) -> object:
    """One value of a params file, of a section that need not be valid as a whole."""
    values = read_yaml(file).get(section)
    return values.get(key) if isinstance(values, dict) else None


if __name__ == "__main__":
    sys.exit(main())
