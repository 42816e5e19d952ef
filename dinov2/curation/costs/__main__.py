"""The plans of all stages of the curation, as the Markdown table of docs/scale.md.

Run:   python -m dinov2.curation.costs --params presets/paper-vitg.yaml --images 1.3e9 --nodes 20 --cores 96 --gpus 8
"""

import argparse
import sys
from pathlib import Path

from dinov2.command import add_options, from_options, show
from dinov2.curation.costs.plan import markdown
from dinov2.curation.costs.sizes import Assumed, Machines
from dinov2.params import InputError


def main(arguments: list[str] | None = None) -> int:
    """Exit code 2 with one sentence for numbers that no plan can be made of."""
    parser = argparse.ArgumentParser(
        "python -m dinov2.curation.costs", description=f"{__doc__}\n{Assumed.__doc__}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--params", type=Path, default=Path("params.yaml"), metavar="FILE")
    add_options(parser, Assumed)
    options = vars(parser.parse_args(arguments))
    machines = Machines(nodes=1, cores=1, gpus=0, workers=1)
    try:
        show(markdown(options["params"], from_options(Assumed, options), machines).splitlines())
    except InputError as error:
        sys.stderr.write(f"costs: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
