"""MLflow: what stages and pipelines say of themselves is shipped beside them, and never lost.

The record of a run is `metrics.jsonl` in its work folder, and `tracking.json` beside it says what else there is to
ship. One background process a repository ships what is new, in batches, while stages run: the import and first use of
MLflow cost five seconds, which no stage waits for, and jobs need no tracking server. One that is down, slow or
read-only costs training nothing: a sentence says so, and what was not shipped is shipped by the next stage, or by hand.

Run:   python -m tasks.tracking             ship all that is left; says what was shipped after an outage
       python -m tasks.tracking --compare   links to MLflow's page with the models side by side, and with all runs
"""

import argparse
import contextlib
import fcntl
import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from dinov2.params import InputError, load_section
from dinov2.records import read_json, write_json
from tasks.server import TrackingParams, connect
from tasks.shipping import Shipment, Shipped, end_of, remembered
from tasks.tracked import LATER, MARK, TROUBLE, WORK, read_mark
from tasks.views import save_views

OUTAGES = "tracking-outages.jsonl"
"""A line for each time that the server took nothing: how long, and what was shipped when it did again."""
LOCK_TRIES = 10


class Standing(NamedTuple):
    """How many of the starts that work folders tell of are with the server."""

    shipped: int
    """To their end."""
    running: int
    left: int
    """Ended, but not shipped."""


def standing(params: TrackingParams, root: Path) -> Standing:
    """By what the work folders remember; asks no server."""
    counts = [0, 0, 0]
    for work, mark, status in _starts(root):
        counts[1 if status == "RUNNING" else 0 if _is_shipped(params.uri, work, mark) else 2] += 1
    return Standing(*counts)


def _starts(root: Path) -> list[tuple[Path, dict[str, Any], str]]:
    """Work folder, mark and status of each last start; pipelines before their stages, by the time they began."""
    marks = [(path.parent, read_mark(path.parent)) for path in root.glob(f"*/*/{MARK}")]
    told = [(work, *mark) for work, mark in marks if mark is not None]
    return sorted(told, key=lambda each: (each[1]["kind"] != "pipeline", each[1]["attempt"]))


def _is_shipped(uri: str, work: Path, mark: dict[str, Any]) -> bool:
    return remembered(work)["servers"].get(uri, {"ended": None})["ended"] == end_of(mark)


def ship_all(params: TrackingParams, root: Path, shipped: Shipped) -> None:
    """Ship what is new of every work folder below `root`, counting in `shipped`.

    A folder that can't be shipped does not keep others from it; its error is raised when they are. So is the first one
    of a server that does not answer, at once.
    """
    waiting = [work for work, mark, _ in _starts(root) if not _is_shipped(params.uri, work, mark)]
    if not waiting:
        return
    server = connect(params)
    if server.is_new:
        save_views(server)
    failure: Exception | None = None
    for work in waiting:
        try:
            Shipment(server, work, shipped).ship()
        except Exception as error:  # MLflow raises of every kind
            failure = failure or error
            connect(params)
    if failure is not None:
        raise failure


def ship(params: TrackingParams, root: Path) -> str | None:
    """One pass. Returns the sentence for a server that did not take it all; keeps a ledger of outages."""
    trouble = root / TROUBLE
    known: dict[str, Any] = read_json(trouble) or {}
    shipped = Shipped()
    try:
        ship_all(params, root, shipped)
    except InputError:
        raise
    except Exception as error:  # MLflow raises of every kind; what is left is tried again
        sentence = f"{_trouble(params, error)}; {LATER}"
        since = {"since": time.time(), "runs": [], "points": 0, "files": 0} | known
        write_json(trouble, {**_added(since, shipped), "sentence": sentence})
        return sentence
    if known:
        total = _added(known, shipped)
        line = {"seconds": time.time() - total["since"], "runs": len(total["runs"])}
        with (root / OUTAGES).open("a") as ledger:
            ledger.write(json.dumps({**line, "points": total["points"], "files": total["files"]}) + "\n")
        trouble.unlink()
    return None


def _trouble(params: TrackingParams, error: Exception) -> str:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
    return f"tracking server {params.uri} can't be reached or takes nothing ({reason})"


def _added(known: dict[str, Any], shipped: Shipped) -> dict[str, Any]:
    return known | {
        "runs": sorted({*known["runs"], *shipped.runs}),
        "points": known["points"] + shipped.points,
        "files": known["files"] + shipped.files,
    }


def told(params: TrackingParams, root: Path) -> str:
    """In a sentence or two: what the server has, what it has not, and what it was given after it had taken nothing."""
    stands = standing(params, root)
    parts = [f"{params.uri} has all of {stands.shipped} runs of stages and pipelines"]
    if stands.running:
        parts.append(f"{stands.running} go on")
    if stands.left:
        parts.append(f"{stands.left} wait to be shipped by `python -m tasks.tracking`")
    sentences = [", ".join(parts)]
    path = root / OUTAGES
    for line in path.read_text().splitlines() if path.exists() else ():
        outage = json.loads(line)
        what = f"{outage['runs']} runs, {outage['points']:,} points and {outage['files']} files"
        sentences.append(f"after {outage['seconds']:.0f} s in which it took nothing, {what} were shipped")
    return "; ".join(sentences)


@contextmanager
def shipping_alone(root: Path, *, tries: int) -> Iterator[int | None]:
    """The lock that one process at a time has, or None: another ships. Tries for a while, as that may be ending."""
    root.mkdir(exist_ok=True)
    with (root / "tracking.lock").open("a") as lock:
        for attempt in range(tries):
            if attempt:
                time.sleep(0.5)
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                yield lock.fileno()
                return
        yield None


def follow(params: TrackingParams, root: Path) -> None:
    """Ship until no stage has been running for `idle_s`; ends at once where another process does this already."""
    with shipping_alone(root, tries=LOCK_TRIES) as lock:
        if lock is None:
            return
        last_running = time.monotonic()
        while True:
            ship(params, root)
            if standing(params, root).running:
                last_running = time.monotonic()
            elif time.monotonic() - last_running >= params.idle_s or os.fstat(lock).st_nlink == 0:
                return  # right after a look, so that a stage that has just begun is not missed; or `make clean` came by
            time.sleep(params.ship_every_s)


def main(arguments: list[str]) -> int:
    """The command line."""
    about = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("python -m tasks.tracking", description=__doc__, formatter_class=about)
    one = parser.add_mutually_exclusive_group()
    one.add_argument("--follow", action="store_true", help="ship while stages run; they start this themselves")
    one.add_argument("--compare", action="store_true", help="print links to saved views of MLflow's page")
    given = parser.parse_args(arguments)
    try:
        params = load_section(Path("params.yaml"), "tracking", TrackingParams)
        if given.follow:
            follow(params, WORK)
            return 0
        if given.compare:
            return _compare(params)
        return _by_hand(params)
    except InputError as error:
        sys.stderr.write(f"tracking: {error}\n")
        return 2


def _compare(params: TrackingParams) -> int:
    try:
        links = save_views(connect(params))
    except InputError:
        raise
    except Exception as error:  # MLflow raises of every kind
        sys.stderr.write(f"tracking: {_trouble(params, error)}; start it, or mend tracking.uri\n")
        return 1
    sys.stdout.writelines(f"{key}: {link}\n" for key, link in links.items())
    return 0


def _by_hand(params: TrackingParams) -> int:
    with shipping_alone(WORK, tries=LOCK_TRIES) as lock:
        trouble = ship(params, WORK) if lock is not None else None
    if trouble is not None:
        sys.stderr.write(f"tracking: {trouble}\n")
        return 1
    note = "" if lock is not None else "; a process in the background is shipping now"
    sys.stdout.write(f"{told(params, WORK)}{note}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
