"""The demo's input, and what the curation made of it.

Run:   python -m demo build [--images DIR]     makes inputs/<name>/ and points params.yaml at it
       python -m demo check                    after a run: which of the planted copies and junk are gone
Cost:  build: seconds; skipped where it was made from the same photographs before. check: under a second
"""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from demo.build import Built, build_folder, build_packaged
from demo.check import check_planted, render
from demo.planted import NUM_PLANTED
from demo.settings import set_inputs
from dinov2.params import InputError

INPUTS = Path("inputs")
PARAMS = Path("params.yaml")


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 2 with one sentence where a person's input is at fault."""
    parser = argparse.ArgumentParser(prog="python -m demo")
    commands = parser.add_subparsers(dest="command", required=True)
    build = commands.add_parser("build", help="make the input and point params.yaml at it")
    build.add_argument("--images", type=Path, help="a folder of photographs: a folder a class, or flat")
    commands.add_parser("check", help="after a run: which planted copies and junk are gone")
    options = parser.parse_args(arguments)
    try:
        if options.command == "build":
            _build(options.images)
        else:
            print(render(check_planted(PARAMS, data=Path("data"), out=Path("work/demo-check.json"))))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: {error.filename or INPUTS}: {error.strerror}; make room or mend it, then again", file=sys.stderr)
        return 2
    return 0


def _build(images: Path | None) -> None:
    start = time.monotonic()
    built = build_packaged(INPUTS) if images is None else build_folder(INPUTS, images)
    if built.note:
        print(f"{images}: {built.note}")
    print(_describe(built, time.monotonic() - start))
    former = set_inputs(PARAMS, built.folder)
    if former:
        print(f"{PARAMS}: {', '.join(former)} now point into {built.folder} (before: {', '.join(former.values())})")


def _describe(built: Built, seconds: float) -> str:
    counts = built.counts
    planted = sum(counts.get(kind, 0) for kind in NUM_PLANTED)
    what = (
        f"{counts['pages']} pages, {counts['photograph']} distinct images and {planted} planted ones; "
        f"{counts['labels']} labels with {counts['seeds']} seeds and {counts['evaluation']} evaluation images"
    )
    return f"{built.folder}: {what} ({f'built in {seconds:.1f} s' if built.is_new else 'there already'})"


if __name__ == "__main__":
    sys.exit(main())
