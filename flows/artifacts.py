"""What a flow run shows in Prefect's pages: the curation's funnel, each stage's metrics, links."""

import json
from pathlib import Path

from prefect.artifacts import create_link_artifact, create_table_artifact

CURATION = ("crawl", "download", "filter", "embed", "dedup", "retrieve")


def _outputs(stage: str) -> list[Path]:
    folder = Path("data") / stage
    if (folder / "metrics.json").exists():
        return [folder]
    return sorted(path.parent for path in folder.glob("*/metrics.json"))


def stage_metrics(stage: str) -> dict[str, float]:
    """metrics.json of a stage; of a matrix stage, all of them as `<model>.<metric>`."""
    values: dict[str, float] = {}
    for folder in _outputs(stage):
        prefix = "" if folder.name == stage else f"{folder.name}."
        metrics = json.loads((folder / "metrics.json").read_text())
        values.update({prefix + key: value for key, value in metrics.items()})
    return values


def publish_metrics(stage: str) -> None:
    """A table of the stage's metrics."""
    rows = [{"metric": key, "value": round(value, 6)} for key, value in sorted(stage_metrics(stage).items())]
    if rows:
        create_table_artifact(key=f"metrics-{stage}", table=rows, description=f"Metrics of {stage}")


def publish_funnel() -> None:
    """A table of how many images each stage of the curation was given, kept and dropped, and why."""
    rows: list[dict[str, object]] = []
    for stage in CURATION:
        counts = json.loads((Path("data") / stage / "record.json").read_text())["counts"]
        reasons = ", ".join(f"{reason} {number}" for reason, number in sorted(counts["dropped"].items()))
        rows.append({"stage": stage, "in": counts["num_in"], "kept": counts["num_kept"], "dropped": reasons})
    create_table_artifact(key="curation-funnel", table=rows, description="From crawled pages to the curated set")


def publish_link(key: str, how: str, link: str, text: str) -> None:
    """A link, with the command that starts what it leads to."""
    create_link_artifact(key=key, link=link, link_text=text, description=f"Start the page with `{how}`")
