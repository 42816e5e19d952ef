"""Gates: a stage whose numbers fall short stops the pipeline with a sentence; its work is kept, not published."""

from pathlib import Path

from pydantic import RootModel

from dinov2.params import InputError, read_yaml


class GateMissedError(Exception):
    """A stage ended well but a number fell short of what `gates:` asks for."""


class Gates(RootModel[dict[str, dict[str, float]]]):
    """Section `gates` of params.yaml: {stage: {metric: least value}}; a stage of one model is `evaluate@pretrain`."""


def check_gate(params_file: Path, stage: str, instance: str, metrics: dict[str, float], out: Path) -> None:
    """Raise GateMissedError if a metric is below the least value that `gates:` gives for `stage` or `instance`."""
    try:
        gates = Gates.model_validate(read_yaml(params_file)["gates"]).root
    except (KeyError, ValueError) as error:
        raise InputError(f"{params_file}: gates: is not {{stage: {{metric: value}}}} ({error}); mend it") from error
    asked = [(name, *gate) for name in dict.fromkeys((stage, instance)) for gate in sorted(gates.get(name, {}).items())]
    for name, metric, least in asked:
        if metric not in metrics:
            have = ", ".join(sorted(metrics))
            raise InputError(f"{params_file}: gates.{name}.{metric}: {instance} has no such metric; it has {have}")
        if metrics[metric] < least:
            raise GateMissedError(
                f"gate missed: {metric} is {metrics[metric]:.4g}, below gates.{name}.{metric} = {least:.4g}; "
                f"look at {out}, then mend the stage's params or lower the gate"
            )
