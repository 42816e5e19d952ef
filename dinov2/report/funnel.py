"""The funnel of the curation: what each stage was given, what it kept, and why it dropped the rest.

Read from the `record.json` that lies in every stage's output. Numbers are shown as the stages counted them, and the
page says so where they don't add up or where a stage was given other than what the one before it kept.
"""

from pathlib import Path
from typing import Any, NamedTuple

from dinov2.lookup import read_record

STAGES = {
    "crawl": "image links found in the pages",
    "download": "links followed",
    "filter": "images looked at one by one",
    "embed": "images described",
    "dedup": "images compared with each other",
    "retrieve": "unique images compared with the seeds",
}


class Reason(NamedTuple):
    """Why images were dropped, and how many."""

    name: str
    num: int
    share: float
    """Of what the funnel began with."""


class Step(NamedTuple):
    """A stage of the funnel."""

    stage: str
    about: str
    num_in: int
    num_kept: int
    reasons: list[Reason]
    """Most frequent first."""
    share_in: float
    """num_in, as a share of the largest in the funnel."""
    share_kept: float
    notes: list[str]
    """What a reader should know: counts that don't add up, images that joined on the way."""


def read_funnel(outputs: dict[str, Path]) -> list[Step]:
    """The funnel's stages in order, those that have a record."""
    counts: dict[str, dict[str, Any]] = {}
    for stage in STAGES:
        record = read_record(outputs[stage])
        if record is not None:
            counts[stage] = record["counts"]
    largest = max((count["num_in"] for count in counts.values()), default=0) or 1
    steps: list[Step] = []
    for stage, count in counts.items():
        notes = _notes(count, steps[-1] if steps else None)
        dropped = sorted(count["dropped"].items(), key=lambda item: (-item[1], item[0]))
        reasons = [Reason(name, num, num / largest) for name, num in dropped if num]
        shares = (count["num_in"] / largest, count["num_kept"] / largest)
        steps.append(Step(stage, STAGES[stage], count["num_in"], count["num_kept"], reasons, *shares, notes))
    return steps


def _notes(count: dict[str, Any], previous: Step | None) -> list[str]:
    notes = []
    missing = count["num_in"] - count["num_kept"] - sum(count["dropped"].values())
    if missing:
        notes.append(f"These counts do not add up: {missing:+,} images are neither kept nor dropped.")
    if previous is not None and count["num_in"] != previous.num_kept:
        notes.append(f"{previous.stage} kept {previous.num_kept:,}; this stage was given {count['num_in']:,}.")
    return notes
