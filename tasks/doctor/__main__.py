"""Looks at everything a run needs before anything starts: one line a check, and what to do about it.

Run:   make doctor, or python -m tasks.doctor [--params FILE]

Exit code 2 if there is a problem; a warning is something that may be meant. Reads only, but for one small file in
work/, which it removes again. Asks no host but those that params name.
"""

import argparse
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from dinov2.command import show
from dinov2.params import InputError
from tasks.doctor.finding import Finding, problem
from tasks.doctor.machine import check_clock, check_disk, check_machine, check_packages
from tasks.doctor.params import check_inputs, check_models, check_params, check_plan, check_schedules
from tasks.doctor.services import check_dvc, check_slurm, check_tracking

CHECKS: list[Callable[[Path], Iterator[Finding]]] = [
    check_params, check_plan, check_schedules, check_inputs, check_models, check_packages, check_disk, check_machine,
    check_slurm, check_clock, check_tracking, check_dvc,
]  # fmt: skip


def findings(file: Path) -> Iterator[Finding]:
    """Of all checks; one that can't go on says why, if no other has said it, and the others go on."""
    told: set[str] = set()
    for check in CHECKS:
        name = check.__name__.removeprefix("check_")
        try:
            yield from check(file)
        except InputError as error:
            if str(error) not in told:
                yield problem(f"{name}: {error}")
            told.add(str(error))
        except Exception as error:  # a folder nobody may read, a package that is half there
            yield problem(f"{name}: can't be looked at ({type(error).__name__}: {error}); mend that first")


def main(arguments: list[str]) -> int:
    """The command line."""
    about: Any = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("python -m tasks.doctor", description=__doc__, formatter_class=about)
    parser.add_argument("--params", type=Path, default=Path("params.yaml"), metavar="FILE")
    file = parser.parse_args(arguments).params
    found: list[Finding] = []

    def lines() -> Iterator[str]:
        for finding in findings(file):
            found.append(finding)
            yield f"{finding.level:<8} {finding.what}"

    show(lines())
    problems = sum(finding.level == "problem" for finding in found)
    warnings = sum(finding.level == "warning" for finding in found)
    show([f"{problems} problems, {warnings} warnings"])
    return 2 if problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
