"""Gates: a stage whose numbers fall short stops the pipeline with a sentence; its work is kept, not published."""

from pathlib import Path

from pydantic import RootModel

from dinov2.params import InputError, read_yaml


class GateMissedError(Exception):
    """A stage ended well but a number fell short of what `gates:` asks for."""


class Gates(RootModel[dict[str, dict[str, float]]]):
    """Section `gates` of params.yaml: {stage: {metric: least value}}."""


def check_gate(params_file: Path, stage: str, metrics: dict[str, float], out: Path) -> None:
    """Raise GateMissedError if a metric of `stage` is below the least value that `gates:` gives for it."""
    try:
        gates = Gates.model_validate(read_yaml(params_file)["gates"]).root
    except (KeyError, ValueError) as error:
        raise InputError(f"{params_file}: gates: is not {{stage: {{metric: value}}}} ({error}); mend it") from error
    for metric, least in sorted(gates.get(stage, {}).items()):
        if metric not in metrics:
            have = ", ".join(sorted(metrics))
            raise InputError(f"{params_file}: gates.{stage}.{metric}: {stage} has no such metric; it has {have}")
        if metrics[metric] < least:
            raise GateMissedError(
                f"gate missed: {metric} is {metrics[metric]:.4g}, below gates.{stage}.{metric} = {least:.4g}; "
                f"look at {out}, then mend the stage's params or lower the gate"
            )
