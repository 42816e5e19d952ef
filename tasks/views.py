"""Saved views of MLflow's experiment page: links that open it with chosen runs, columns and charts.

MLflow keeps a shared view as a tag of the experiment that its page reads by the key in a link. It writes such tags when
somebody presses "Share"; these two are written the same way, so that they are there from the first run on.
"""

import json
from typing import Any

from tasks.server import PAGES, Server

TAG = "mlflow.sharedViewState."
LOSSES = ("total", "dino_global", "dino_local", "ibot", "koleo")
MONITORS = ("knn", "effective_rank", "teacher_entropy", "lr")
OF_MODELS = [
    "tags.`stage`", "tags.`model`", "metrics.`knn_top1`", "metrics.`linear_top1`", "metrics.`evaluate/knn_top1`",
    "metrics.`total`", "metrics.`effective_rank`", "params.`model.dim`", "params.`batch_size`", "params.`num_steps`",
    "params.`optim.base_lr`", "attributes.`Dataset`",
]  # fmt: skip
OF_RUNS = [
    "tags.`kind`", "tags.`instance`", "attributes.`Dataset`", "attributes.`Source`", "attributes.`Version`",
    "metrics.`kept_share`", "metrics.`knn_top1`", "tags.`slurm_job_ids`", "tags.`reason`",
]  # fmt: skip


def views() -> dict[str, dict[str, Any]]:
    """What the page remembers, by key: `models` compares models in charts, `runs` lists all with the columns to use."""
    sections = [("judged", "Judged on held-out images"), ("losses", "Losses"), ("monitors", "While training")]
    charts = [_chart("BAR", "judged", key) for key in ("knn_top1", "linear_top1")]
    charts += [_chart("LINE", "losses", key) for key in LOSSES]
    charts += [_chart("LINE", "monitors", key) for key in MONITORS]
    return {
        "models": {
            "searchFilter": "tags.kind = 'model'",
            "orderByKey": "tags.`mlflow.runName`",  # by any but time: the page then does not hide them in their stages
            "orderByAsc": True,
            "selectedColumns": OF_MODELS,
            "compareRunCharts": charts,
            "compareRunSections": [
                {"uuid": uuid, "name": name, "display": True, "isReordered": True, "deleted": False,
                 "isGenerated": False} for uuid, name in sections
            ],
            "isAccordionReordered": True,
            "hideEmptyCharts": True,
            "runsHiddenMode": "SHOW_ALL",
        },
        "runs": {"selectedColumns": OF_RUNS, "runsHiddenMode": "SHOW_ALL"},
    }  # fmt: skip


def _chart(kind: str, section: str, metric: str) -> dict[str, Any]:
    common = {
        "uuid": f"{section}-{metric}", "type": kind, "metricSectionId": section, "metricKey": metric,
        "displayName": metric, "runsCountToCompare": 20, "deleted": False, "isGenerated": False,
    }  # fmt: skip
    if kind == "BAR":
        return common
    return common | {
        "selectedMetricKeys": [metric], "lineSmoothness": 0, "xAxisScaleType": "linear", "scaleType": "linear",
        "range": {}, "xAxisKey": "step", "selectedXAxisMetricKey": "", "yAxisKey": "metric", "yAxisExpressions": [],
        "ignoreOutliers": False, "useGlobalXaxisKey": True, "useGlobalLineSmoothing": True,
    }  # fmt: skip


def save_views(server: Server) -> dict[str, str]:
    """Put the views into the experiment (again: the same); returns a link to each."""
    for key, view in views().items():
        server.client.set_experiment_tag(server.experiment_id, TAG + key, json.dumps(view))
    address = server.uri.rstrip("/") if server.uri.startswith("http") else PAGES
    return {key: view_link(address, server.experiment_id, key) for key in views()}


def view_link(address: str, experiment_id: str, key: str) -> str:
    """The link of a saved view."""
    page = f"{address}/#/experiments/{experiment_id}/runs?viewStateShareKey={key}"
    return page + ("&compareRunsMode=CHART" if "compareRunCharts" in views()[key] else "")
