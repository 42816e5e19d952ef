"""What the curation finds of what was planted in a crawl of photographs, as Markdown tables.

Run:   python -m benchmarks.planted --classes CALTECH101 --pool FLOWERS --work DIR [--sscd ONNX] [--safety YAML]
           [--embedder YAML]
       (CALTECH101: a folder a class; FLOWERS: photographs of other things; DIR: for the run, kept)

The crawl: all of FLOWERS and of the class BACKGROUND_Google; NUM_CLASSES classes of CALTECH101, of each 15 % as seeds,
a fifth held out, the rest hidden in the crawl; the class Faces; copies of seven kinds, copies of held-out images,
files that are broken, tiny, blank or banners, links that are dead or forbidden. Every stage runs by its command, from
the pages to the curated set, once with thumbnails and once with SSCD as copy descriptors. Recall: share of the planted
that is gone for the reason expected (copies: for any, one of each group may stay; of two equal files either may go).
Precision: share of what went for a reason that was planted for it. What was not planted counts as a mistake here,
though Caltech-101 and the flowers have copies and near-copies, banners and faces of their own. A run that is in DIR is
not run again; remove DIR/data-* for that.
"""

import argparse
import hashlib
import json
import shutil
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.parquet as pq
from ruamel.yaml import YAML

from demo.build import Roles, write_input
from demo.check import left_over
from demo.folder import scan_folder, split_class
from demo.planted import COPIES, HARD_COPIES, NUM_PLANTED, Picture

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks/results/planted.md"
NUM_CLASSES = 12
BACKGROUND, FACES = "BACKGROUND_Google", "Faces"
PLANTED = {**{kind: 2 * count for kind, count in NUM_PLANTED.items()}, **dict.fromkeys(HARD_COPIES, 100)}
REASON = {  # of each kind of junk: the stage and the reason that it should go for
    "forbidden": "crawl refused_domain",
    "dead": "download not_in_crawl",
    "missing": "download bad_status",
    "html_as_image": "download not_an_image",
    "random_bytes": "download not_an_image",
    "duplicate": "download duplicate_bytes",
    "truncated": "filter undecodable",
    "thumbnail": "filter too_small",
    "banner": "filter extreme_aspect",
    "blank": "filter near_constant",
}
DESCRIPTORS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "thumbnail": ({}, {}),  # as params.yaml has it
    "sscd": (
        {"kind": "sscd", "resize": "square", "size_px": 320, "input": "uint8_nhwc"},
        {"min_cosine": 0.6, "evaluation_sets": {"held_out": {"folder": "", "min_cosine": 0.45}}},
    ),
}


class Planted(NamedTuple):
    """What lies behind the URLs of the crawl."""

    kinds: dict[str, str]
    originals: dict[str, str]
    labels: dict[str, str]


def build(classes: Path, pool: Path, folder: Path) -> Planted:
    """Write the input, unless it is there."""
    if not (folder / "complete.json").exists():
        write_input(folder, _roles(classes, pool), {"version": 1, "labels": "class"}, PLANTED)
    about = json.loads((folder / "planted.json").read_text())
    return Planted(about["kinds"], about["originals"], about["labels"])


def _roles(classes: Path, pool: Path) -> Roles:
    found = scan_folder(classes).photos
    largest = sorted(found, key=lambda label: (-len(found[label]), label))
    chosen = [label for label in largest if label not in (BACKGROUND, FACES)][:NUM_CLASSES]
    roles = Roles([], [], [])
    for label in sorted(chosen):
        split = split_class(found[label])
        for name in Roles._fields:
            getattr(roles, name).extend(_pictures(label, getattr(split, name)))
    for label in (BACKGROUND, FACES):
        roles.pool.extend(_pictures(label, found[label]))
    for label, photos in sorted(scan_folder(pool).photos.items()):
        roles.pool.extend(_pictures(f"other-{label}", photos))
    return roles


def _pictures(label: str, photos: list[Any]) -> list[Picture]:
    return [Picture(photo.path.stem, label, "image/jpeg", photo.path) for photo in photos if photo.mime == "image/jpeg"]


def run_stages(work: Path, params: dict[str, Any], stages: list[str]) -> None:
    """Run the stages by their commands in `work`, as dvc.yaml has them."""
    yaml = YAML()
    with (work / "params.yaml").open("w") as stream:
        yaml.dump(params, stream)
    commands = yaml.load(ROOT / "dvc.yaml")["stages"]
    for stage in stages:
        command = commands[stage]["cmd"]
        words = [sys.executable, *command.split()[1:]]
        environment = {"PYTHONPATH": str(ROOT), "PATH": str(Path(sys.executable).parent) + ":/usr/bin:/bin"}
        done = subprocess.run(words, cwd=work, env=environment, check=False, capture_output=True, text=True)
        if done.returncode != 0:
            sys.exit(f"{command}\n{done.stdout[-2000:]}{done.stderr[-2000:]}")


def rows(path: Path) -> list[dict[str, Any]]:
    """Rows of a Parquet file."""
    return pq.read_table(path).to_pylist()


def removals(data: Path) -> dict[str, str]:
    """The stage and reason of every URL that is gone before retrieval."""
    return {
        row["url"]: f"{stage} {row['reason']}"
        for stage in ("crawl", "download", "filter", "dedup")
        for row in rows(data / stage / "removed.parquet")
    }


def filter_table(planted: Planted, gone: dict[str, str]) -> Iterator[str]:
    """Recall and precision of each reason that junk should go for."""
    yield "| planted | number | expected | recall % | gone at all % | gone for this | of these planted for it % |"
    yield "|---|---|---|---|---|---|---|"
    for kind, reason in REASON.items():
        urls = [url for url, its in planted.kinds.items() if its == kind]
        same = {other for other, its in REASON.items() if its == reason}
        twins = {planted.originals[url] for url in urls} if kind == "duplicate" else set[str]()
        went = [url for url, its in gone.items() if its == reason and url in planted.kinds]
        right = [url for url in went if planted.kinds[url] in same or url in twins]
        found = sum(gone.get(url) == reason or gone.get(planted.originals.get(url, "")) == reason for url in urls)
        lost = sum(url in gone or planted.originals.get(url) in gone for url in urls)
        cells = f"{share(found, len(urls))} | {share(lost, len(urls))} | {len(went)} | {share(len(right), len(went))}"
        yield f"| {kind} | {len(urls)} | {reason} | {cells} |"


def copy_table(planted: Planted, by_descriptor: dict[str, Path]) -> Iterator[str]:
    """Recall of every kind of copy, and precision of what went as a copy."""
    names = list(by_descriptor)
    yield f"| copies | planted | {' | '.join(f'gone with {name} %' for name in names)} |"
    yield "|---|---|" + "---|" * len(names)
    left = {
        name: left_over(planted.kinds, planted.originals, {row["url"] for row in rows(data / "dedup/manifest.parquet")})
        for name, data in by_descriptor.items()
    }
    for kind in COPIES:
        urls = [url for url, its in planted.kinds.items() if its == kind]
        cells = [share(sum(url not in left[name] for url in urls), len(urls)) for name in names]
        yield f"| {kind} | {len(urls)} | {' | '.join(cells)} |"
    for stage, reason in (("filter", "pca_hash_duplicate"), ("dedup", "copy"), ("dedup", "evaluation_copy")):
        cells = []
        for data in by_descriptor.values():
            went = [row for row in rows(data / stage / "removed.parquet") if row["reason"].partition(":")[0] == reason]
            right = [row for row in went if _is_planted(row, planted, reason)]
            cells.append(f"{share(len(right), len(went))} of {len(went)}")
        yield f"| *precision of {stage} {reason}* | | {' | '.join(cells)} |"


def _is_planted(row: dict[str, Any], planted: Planted, reason: str) -> bool:
    """Whether a removed image belongs to a group of planted copies: it is one, or the original of one."""
    if reason.startswith("evaluation_copy"):
        return planted.kinds[row["url"]] == "evaluation_copy"
    return planted.kinds[row["url"]] in COPIES or row["url"] in planted.originals.values()


def face_lines(planted: Planted, data: Path) -> Iterator[str]:
    """How many images of people, and of other things, were blurred."""
    kept = [row for row in rows(data / "filter/manifest.parquet") if row["url"] in planted.labels]
    blurred = Counter(planted.labels[row["url"]] == FACES for row in kept if row.get("source_id"))
    total = Counter(planted.labels[row["url"]] == FACES for row in kept)
    yield f"- faces blurred: {blurred[True]} of {total[True]} photographs of the class {FACES}; {blurred[False]} of "
    yield f"  {total[False]} others, some of which show people too"


def retrieval_table(planted: Planted, data: Path, seeds: Path) -> Iterator[str]:
    """Of what each class's seeds brought in: how much is of that class, and how much of the hidden came."""
    label_of = {
        hashlib.sha256(path.read_bytes()).hexdigest(): path.parent.name for path in sorted(seeds.rglob("*.jpg"))
    }
    hidden = Counter(planted.labels.get(row["url"]) for row in rows(data / "dedup/manifest.parquet"))
    came: dict[str, list[str | None]] = defaultdict(list)
    for row in rows(data / "retrieve/manifest.parquet"):
        if row["origin"] != "seed":
            came[label_of[row["seed_id"]]].append(planted.labels.get(row["url"]))
    yield "| seeds of | hidden | retrieved | precision % | by chance % | recall % |"
    yield "|---|---|---|---|---|---|"
    totals = Counter[str]()
    for label in sorted(set(label_of.values())):
        right = sum(its == label for its in came[label])
        totals.update(hidden=hidden[label], came=len(came[label]), right=right)
        chance = share(hidden[label], sum(hidden.values()))
        cells = f"{hidden[label]} | {len(came[label])} | {share(right, len(came[label]))} | {chance}"
        yield f"| {label} | {cells} | {share(right, hidden[label])} |"
    yield (
        f"| *all* | {totals['hidden']} | {totals['came']} | {share(totals['right'], totals['came'])} | "
        f"{share(totals['hidden'], len(set(label_of.values())) * sum(hidden.values()))} | "
        f"{share(totals['right'], totals['hidden'])} |"
    )


def funnel(data: Path) -> Iterator[str]:
    """What came in, stayed and was dropped, stage by stage; checks that it adds up."""
    expected = None
    for stage in ("crawl", "download", "filter", "embed", "dedup", "retrieve"):
        counts = json.loads((data / stage / "record.json").read_text())["counts"]
        assert counts["num_in"] == counts["num_kept"] + sum(counts["dropped"].values()), (stage, counts)
        assert expected in (None, counts["num_in"]), (stage, expected, counts)
        expected = counts["num_kept"]
        dropped = ", ".join(f"{count} {reason}" for reason, count in counts["dropped"].items()) or "none"
        yield f"- {stage}: {counts['num_in']} in, {counts['num_kept']} kept; dropped: {dropped}"


def share(part: int, whole: int) -> str:
    """Percent with one digit."""
    return f"{100 * part / whole:.1f}" if whole else "-"


def main() -> None:
    """Build, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("--classes", "--pool", "--work"):
        parser.add_argument(name, type=Path, required=True)
    parser.add_argument("--sscd", type=Path)
    parser.add_argument("--safety", type=Path, help="YAML: {nsfw: ..., faces: ...} for section filter")
    parser.add_argument("--embedder", type=Path, help="YAML of embed.semantic, for the run with SSCD")
    options = parser.parse_args()
    work: Path = options.work.resolve()
    planted = build(options.classes, options.pool, work / "inputs")
    params: dict[str, Any] = YAML().load(ROOT / "params.yaml")
    params["inputs"] = {name: f"inputs/{name}" for name in ("crawl", "seeds", "evaluation")}
    params["download"]["network"] = False
    if options.safety:
        params["filter"] |= YAML(typ="safe").load(options.safety)
    by_descriptor: dict[str, Path] = {}
    retrieval: list[str] = []
    last, names = work, ["thumbnail", *(["sscd"] if options.sscd else [])]
    for name in names:
        embed, dedup = DESCRIPTORS[name]
        if name == "sscd":
            embed = {**embed, "path": str(options.sscd.resolve()), "sha256": sha256(options.sscd)}
            params["embed"]["copy_descriptor"] = embed
            if options.embedder:
                params["embed"]["semantic"] = YAML(typ="safe").load(options.embedder)
        params["dedup"] |= dedup
        first = ["crawl", "download", "filter", "bootstrap"] if name == "thumbnail" else []
        last = by_descriptor[name] = work / f"data-{name}"
        if not last.exists():
            run_stages(work, params, [*first, "embed", "dedup", "retrieve"])
            keep(work / "data", last)
        embedder = params["embed"]["semantic"].get("path", "the bootstrapped network")
        retrieval += [f"Retrieval by {Path(embedder).name}, after {name}:", ""]
        retrieval += [*retrieval_table(planted, last, work / "inputs/seeds"), ""]
    text = "\n".join(
        [
            "Printed by `python -m benchmarks.planted`; its first lines say what was planted.", "",
            *filter_table(planted, removals(last)), "", *copy_table(planted, by_descriptor), "",
            *face_lines(planted, last), "", *retrieval, f"The counts, with {names[-1]}:", "", *funnel(last),
        ]
    )
    RESULTS.write_text(text + "\n")
    print(text)


def keep(data: Path, kept: Path) -> None:
    """Copy the outputs, since the next run replaces some."""
    partial = kept.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(data, partial)
    partial.rename(kept)


def sha256(path: Path) -> str:
    """Of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


if __name__ == "__main__":
    main()
