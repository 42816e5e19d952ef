"""Which of what was planted in the crawl the curation found, by URL."""

import json
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

from demo.planted import COPIES, NUM_PLANTED
from dinov2.params import InputError, read_yaml
from dinov2.records import CURATED, MANIFEST, REMOVED, read_table, write_json

KINDS = ("photograph", *NUM_PLANTED)


class Row(NamedTuple):
    """What became of one kind."""

    kind: str
    planted: int
    gone: int
    left: int  # in the unique images; of copies those whose original, or another copy of it, is there too
    curated: int  # chosen by retrieval
    removed_by: dict[str, int]  # stage and reason


def check_planted(params: Path, *, data: Path, out: Path) -> list[Row]:
    """Compare planted.json of the input with the manifests and removals in `data`; also written to `out` as JSON.

    Raises InputError if the input has no planted.json or the stages have not run.
    """
    kinds, originals = _read_planted(params)
    unique = {row["url"] for row in read_table(data / "dedup" / "manifest.parquet", MANIFEST)}
    curated = {row["url"] for row in read_table(data / "retrieve" / "manifest.parquet", CURATED)}
    reasons: dict[str, str] = {}
    for stage in ("crawl", "download", "filter", "dedup"):
        path = data / stage / "removed.parquet"
        if path.exists():
            reasons |= {row["url"]: f"{stage}: {row['reason']}" for row in read_table(path, REMOVED)}
    left = left_over(kinds, originals, unique)
    rows: list[Row] = []
    for kind in KINDS:
        urls = [url for url, its_kind in kinds.items() if its_kind == kind]
        num_left = sum(url in left for url in urls)
        removed_by = Counter(reasons.get(url, "unknown") for url in urls if url not in unique)
        rows.append(
            Row(
                kind,
                planted=len(urls),
                gone=len(urls) - num_left,
                left=num_left,
                curated=sum(url in curated for url in urls),
                removed_by=dict(sorted(removed_by.items())),
            )
        )
    write_json(out, {row.kind: {**row._asdict(), "kind": row.kind} for row in rows})
    return rows


def render(rows: list[Row]) -> str:
    """The rows as a table of text."""
    lines = [f"{'planted in the crawl':<21}{'planted':>8}{'gone':>7}{'left':>7}{'curated':>9}   removed by"]
    for row in rows:
        reasons = ", ".join(f"{reason} {count}" for reason, count in row.removed_by.items())
        lines.append(f"{row.kind:<21}{row.planted:>8}{row.gone:>7}{row.left:>7}{row.curated:>9}   {reasons}")
    copies = [row for row in rows if row.kind in COPIES]
    num_gone, num_planted = sum(row.gone for row in copies), sum(row.planted for row in copies)
    lines.append(f"{num_gone} of {num_planted} planted copies are gone")
    return "\n".join(lines)


def left_over(kinds: dict[str, str], originals: dict[str, str], unique: set[str]) -> set[str]:
    """URLs that curation let through. Of an image and its copies one may stay, whichever it is; the others are left."""
    stayed: dict[str, str] = {}
    left: set[str] = set()
    for url in sorted(unique & kinds.keys(), key=lambda url: (kinds[url] in COPIES, url)):  # originals first
        if kinds[url] not in COPIES:
            stayed[url] = url
            left.add(url)
        elif kinds[url] == "evaluation_copy" or originals[url] in stayed:
            left.add(url)
        else:
            stayed[originals[url]] = url
    return left


def _read_planted(params: Path) -> tuple[dict[str, str], dict[str, str]]:
    inputs: Any = read_yaml(params).get("inputs")
    if not isinstance(inputs, dict) or not isinstance(inputs.get("crawl"), str):
        raise InputError(f"{params} has no inputs.crawl; restore the file from git or a preset")
    path = Path(inputs["crawl"]).parent / "planted.json"
    if not path.exists():
        raise InputError(f"{path} does not exist: this input was not made by `python -m demo build`; nothing to check")
    values = json.loads(path.read_text())
    return values["kinds"], values["originals"]
