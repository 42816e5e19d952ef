"""What a flow run shows in Prefect's pages: how far it is, the funnel, metrics, pictures, jobs with their logs, links.

A server that does not answer costs a page, never a run: see `shown`.
"""

import base64
import io
import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from uuid import UUID

from PIL import Image
from prefect.artifacts import (
    create_link_artifact,
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)

from dinov2.params import validate
from dinov2.progress import bar
from flows.stages import CURATION
from tasks.launch import Submission, states

PICTURE_PX = 640  # pictures are kept in Prefect's database
JPEG_QUALITY = 80

log = logging.getLogger("flows")


@contextmanager
def shown(what: str) -> Iterator[None]:
    """Go on without `what` where it can't be shown."""
    try:
        yield
    except Exception as error:  # whatever it is, it is about a page
        log.warning("%s can't be shown in Prefect's pages (%s: %s)", what, type(error).__name__, error)


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


def publish_stage(stage: str) -> None:
    """What there is to see of a stage that has ended: its metrics and pictures, after the curation its funnel."""
    with shown(f"metrics of {stage}"):
        publish_metrics(stage)
    with shown(f"pictures of {stage}"):
        publish_pictures(stage)
    if stage == "retrieve":
        with shown("the funnel"):
            publish_funnel()


def publish_metrics(stage: str) -> None:
    """A table of the stage's metrics."""
    rows = [{"metric": key, "value": round(value, 6)} for key, value in sorted(stage_metrics(stage).items())]
    if rows:
        create_table_artifact(key=f"metrics-{stage}", table=rows, description=f"Metrics of {stage}")


def publish_funnel() -> None:
    """A table of how many images each stage of the curation was given, kept and dropped, and why."""
    rows: list[dict[str, object]] = []
    for stage in CURATION:
        if stage == "bootstrap":  # beside the funnel, not in it
            continue
        counts = json.loads((Path("data") / stage / "record.json").read_text())["counts"]
        reasons = ", ".join(f"{reason} {number}" for reason, number in sorted(counts["dropped"].items()))
        rows.append({"stage": stage, "in": counts["num_in"], "kept": counts["num_kept"], "dropped": reasons})
    create_table_artifact(key="curation-funnel", table=rows, description="From crawled pages to the curated set")


def publish_pictures(stage: str) -> None:
    """The stage's figures, small, within the page: Prefect's server has no files to link to."""
    parts = [
        f"### {path.parents[1].name} {path.stem}\n\n![{path.stem}]({_data_uri(path)})\n\n`{path}`"
        for folder in _outputs(stage)
        for path in sorted(folder.glob("figures/*.png"))
    ]
    if parts:
        create_markdown_artifact("\n\n".join(parts), key=f"pictures-{stage}", description=f"Figures of {stage}")


def _data_uri(path: Path) -> str:
    with Image.open(path) as picture:
        picture.thumbnail((PICTURE_PX, 4 * PICTURE_PX))
        buffer = io.BytesIO()
        picture.convert("RGB").save(buffer, "JPEG", quality=JPEG_QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def job_rows(stage: str) -> list[dict[str, str]]:
    """The jobs that a stage, or each of its members, submitted last: where they are, how they are, their logs."""
    rows: list[dict[str, str]] = []
    for instance in sorted(path for name in (stage, f"{stage}@*") for path in Path("work").glob(name)):
        memories = sorted(instance.glob("*/job*/job.json"), key=lambda path: path.stat().st_mtime)
        for path in memories:
            if path.parents[1] == memories[-1].parents[1]:  # not those of other params or inputs
                rows.extend(_job_rows(instance.name, path))
    return rows


def _job_rows(instance: str, memory: Path) -> Iterator[dict[str, str]]:
    jobs = [validate(Submission, about, where=str(memory)) for about in json.loads(memory.read_text())]
    for job, state in zip(jobs, states(jobs), strict=True):
        kinds = {kind for kind, _ in job.outcomes()}
        ended = "failed" if "error" in kinds else "done" if "success" in kinds else "ended without a result"
        yield {
            "stage": instance,
            "job": f"{job.cluster} {job.job_id}",
            "state": state.state.lower() if state.is_alive else ended,
            "log": str(job.paths(0).stdout),
        }


def publish_link(key: str, how: str, link: str, text: str) -> None:
    """A link, with the command that starts what it leads to."""
    with shown(text):
        create_link_artifact(key=key, link=link, link_text=text, description=f"Start the page with `{how}`")


class Progress:
    """How many of the run's stages have ended, in one artifact that is kept up to date."""

    def __init__(self, total: int) -> None:
        self.total = total
        self._artifact: UUID | None = None

    def show(self, done: int, running: Sequence[str]) -> None:
        """Say it anew."""
        share = 100.0 * done / self.total
        far = f"{done} of {self.total} stages {bar(done, self.total)}"
        now = f"{far}, now {', '.join(running)}" if running else far
        with shown("the progress"):
            if self._artifact is None:
                made = create_progress_artifact(progress=share, key="progress", description=now)
                assert isinstance(made, UUID)
                self._artifact = made
            else:
                update_progress_artifact(self._artifact, progress=share, description=now)


class Jobs:
    """The jobs of the run's stages, in a table that is made anew whenever one changes."""

    def __init__(self) -> None:
        self._rows: dict[str, list[dict[str, str]]] = {}

    def show(self, stages: Sequence[str]) -> None:
        """Look at the jobs of `stages` again."""
        with shown("the table of jobs"):
            rows = {stage: job_rows(stage) for stage in stages}
            if all(self._rows.get(stage, []) == rows[stage] for stage in stages):
                return
            self._rows |= rows
            table = [row for stage in self._rows for row in self._rows[stage]]
            create_table_artifact(key="jobs", table=table, description="Jobs of this run, and where their logs are")
