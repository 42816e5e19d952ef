"""One page that shows the whole run, to read and to hand on; and the table that a terminal prints.

In:    every stage's output; --evaluate holds a folder a model; about.json beside the --seeds folder, if there is one,
       says what kind of recognition the labels ask for
Out:   report.html (self-contained, the same bytes for the same inputs), summary.txt, data_card.md of the curated set
Run:   dvc repro report
Cost:  seconds
"""

import logging
import sys
from pathlib import Path

from dinov2.records import Summary
from dinov2.report.params import ReportParams
from dinov2.store import Store
from tasks.stage import main

VERSION = 2
log = logging.getLogger(__name__)


def run(
    params: ReportParams,
    *,
    crawl: Path,
    download: Path,
    filter: Path,
    bootstrap: Path,
    embed: Path,
    dedup: Path,
    retrieve: Path,
    pretrain: Path,
    highres: Path,
    distill: Path,
    evaluate: Path,
    seeds: Path,
    out: Path,
    store: Store,
) -> Summary:
    """Render the page and the table; counts the models that the page shows."""
    # imported in the job, not in the submitting process
    from dinov2.curation.data_card import data_card
    from dinov2.report.page import render
    from dinov2.report.table import plain_table

    outputs = {
        "crawl": crawl, "download": download, "filter": filter, "bootstrap": bootstrap, "embed": embed, "dedup": dedup,
        "retrieve": retrieve, "pretrain": pretrain, "highres": highres, "distill": distill, "evaluate": evaluate,
    }  # fmt: skip
    report = render(params, outputs, seeds=seeds, store=store)
    (out / "report.html").write_text(report.html)
    (out / "data_card.md").write_text(data_card(outputs))
    table = plain_table(report.judged) if report.judged else "Nothing was evaluated yet.\n"
    (out / "summary.txt").write_text(table)
    log.info("%s", table)
    for thing in report.missing:
        log.warning("the page stands without: %s", thing)
    shown = len(report.judged.rows) if report.judged else 0
    absent = len(report.judged.absent) if report.judged else len(params.models)
    metrics = {"num_missing": float(len(report.missing))}
    if report.judged:
        for row in report.judged.rows:
            metrics[f"{row.model.replace(' ', '_')}_knn_top1"] = row.knn.value
            if row.over_random:
                metrics[f"{row.model.replace(' ', '_')}_over_random"] = row.over_random.value
                metrics[f"{row.model.replace(' ', '_')}_over_random_low"] = row.over_random.low
    return Summary(
        num_in=shown + absent, num_kept=shown, dropped={"not evaluated": absent} if absent else {}, metrics=metrics
    )


if __name__ == "__main__":
    sys.exit(main(run))
