"""Makes `prefect deployment run full-pipeline` work, where Prefect itself asks for `full-pipeline/full-pipeline`.

Prefect calls this documented start-up hook before its command line reads its arguments (pyproject.toml enables it). Our
flows and deployments bear the same name, so a name without a slash can only mean `<name>/<name>`.
"""

import sys
from pathlib import Path

from prefect.plugins import HookContext, SetupResult, register_hook


@register_hook
def setup_environment(*, ctx: HookContext) -> SetupResult | None:
    """Complete a deployment's short name on the command line; changes nothing else."""
    complete(sys.argv)
    return None


def complete(arguments: list[str]) -> None:
    """Replace `X` by `X/X` in `prefect deployment run X`, in place."""
    if Path(arguments[0]).name != "prefect" or arguments[1:3] != ["deployment", "run"] or len(arguments) < 4:
        return
    place = 4 if arguments[3] == "--watch" and len(arguments) > 4 else 3
    name = arguments[place]
    if "/" not in name and not name.startswith("-"):
        arguments[place] = f"{name}/{name}"
