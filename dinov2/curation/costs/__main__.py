"""The plans of all stages of the curation, as the Markdown table of docs/scale.md.

Run:   python -m dinov2.curation.costs --params presets/paper-vitg.yaml --images 1.3e9 --nodes 20 --cores 96 --gpus 8
"""

import argparse
import sys
import typing
from pathlib import Path

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
    for name, kind in typing.get_type_hints(Assumed).items():
        (plain,) = set(typing.get_args(kind) or (kind,)) - {type(None)}
        parser.add_argument(f"--{name}", type=plain, default=Assumed._field_defaults[name], help="default: %(default)s")
    options = vars(parser.parse_args(arguments))
    file = options.pop("params")
    try:
        sys.stdout.write(markdown(file, Assumed(**options), Machines(nodes=1, cores=1, gpus=0, workers=1)))
    except InputError as error:
        sys.stderr.write(f"costs: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
