"""Fuzz the parsers of tests/fuzz_targets.py for a time; prints inputs tried and the faults found, each made small.

Run:   PYTHONPATH=tests nice -n 19 python -m benchmarks.fuzz_parsers --minutes 15 --seed 0 [--only url,robots]
Parsers take turns of 500 inputs, slow ones of fewer; after a fault the next turn has another seed. A find belongs into
the parser's tests, made small.
"""

import argparse
import logging
import sys
import time
import traceback
from collections import Counter

from fuzz_targets import TARGETS, UNASKED, Target
from hypothesis import given, seed, settings

EXAMPLES_A_TURN = 500
SLOW = {"files": 100, "crawl": 20}  # so that they don't take all the time


def main() -> int:
    """Fuzz; exit code 1 if a fault was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--only", default=",".join(target.name for target in TARGETS))
    options = parser.parse_args()
    logging.disable(logging.WARNING)  # damaged files say so
    targets = [target for target in TARGETS if target.name in options.only.split(",")]
    tried: Counter[str] = Counter()
    slowest: dict[str, float] = dict.fromkeys((target.name for target in targets), 0.0)
    faults: Counter[str] = Counter()
    turn, end = 0, time.monotonic() + 60 * options.minutes
    while time.monotonic() < end:
        for target in targets:
            try:
                _turn(target, options.seed + turn, tried, slowest)
            except Exception:
                faults[target.name] += 1
                print(f"FAULT of {target.name}, seed {options.seed + turn}:\n{traceback.format_exc()}", flush=True)
        turn += 1
    print("| parser | inputs | slowest, ms | faults |\n|---|---:|---:|---:|")
    for target in targets:
        name = target.name
        print(f"| {name} | {tried[name]:,} | {1e3 * slowest[name]:.0f} | {faults[name]} |")
    return 1 if faults else 0


def _turn(target: Target, number: int, tried: Counter[str], slowest: dict[str, float]) -> None:
    @seed(number)
    @settings(
        max_examples=SLOW.get(target.name, EXAMPLES_A_TURN), deadline=None, database=None,
        suppress_health_check=UNASKED, print_blob=False,
    )  # fmt: skip
    @given(target.inputs)
    def check(value: object) -> None:
        tried[target.name] += 1
        started = time.process_time()
        target.check(value)
        slowest[target.name] = max(slowest[target.name], time.process_time() - started)

    check()


if __name__ == "__main__":
    sys.exit(main())
