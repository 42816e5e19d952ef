"""The download stage without its job: all phases by some number of workers, in this process or in one to be killed."""

import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

from dinov2.curation.crawl.domains import REFUSED_DOMAINS, write_domains
from dinov2.curation.download.images import DownloadParams
from dinov2.records import IMAGE_RECORDS, MANIFEST, REMOVED, Summary, read_table, write_table
from dinov2.store import Store, StoreParams
from tasks import download
from tasks.fan_out import make_parts

PARAMS: dict[str, Any] = {
    "network": True,
    "max_bytes": 200_000,
    "max_pixels": 1_000_000,
    "num_parts": 2,
    "records_per_part": 7,
    "http": {
        "user_agent": "test-bot/1.0",
        "timeout_s": 5.0,
        "patience_s": 2.0,
        "min_bytes_per_s": 100.0,
        "max_redirects": 3,
        "allow_private_addresses": True,
    },
    "politeness": {
        "max_hosts": 4,
        "max_per_host": 4,
        "delay_s": 0.0,
        "max_crawl_delay_s": 0.3,
        "max_attempts": 2,
        "backoff_s": 0.01,
        "max_pause_s": 2.0,
        "max_wait_s": 5.0,
        "give_up_after": 20,
        "seed": 0,
    },
    "opt_out": {"robots_txt": True, "directives": ["noai", "noimageai"], "tdm_reservation": True},
    "shard_mb": 1,
    "max_dropped_share": 1.0,
}


class Downloaded(NamedTuple):
    """What the stage made."""

    rows: list[dict[str, Any]]
    removed: list[dict[str, Any]]
    summary: Summary

    @property
    def reasons(self) -> list[str]:
        """Of the removals, in their order."""
        return [row["reason"] for row in self.removed]


def changed(**changes: Any) -> DownloadParams:
    """PARAMS with some values changed, also within its sections."""
    values = {**PARAMS}
    for key, value in changes.items():
        values[key] = {**values[key], **value} if isinstance(value, dict) else value
    return DownloadParams.model_validate(values)


def record(url: str, warc: str | None = None, offset: int | None = None) -> dict[str, Any]:
    """A row of IMAGE_RECORDS."""
    return {"url": url, "page_url": "http://site.example/", "alt": "", "warc": warc, "warc_offset": offset}


def store_in(folder: Path) -> Store:
    """The store of a run in `folder`."""
    return Store(StoreParams(url=str(folder / "store"), cache=str(folder / "cache"), remote=None))


def run_stage(folder: Path, params: DownloadParams, *, num_workers: int = 1) -> Summary:
    """All phases and the gathering, over `folder/records.parquet`; the last worker first."""
    inputs = {"crawl_records": folder, "crawl": folder / "crawl", "work": folder / "work", "store": store_in(folder)}
    write_domains(folder / REFUSED_DOMAINS, frozenset({"refused.example"}))
    for phase in download.PHASES:
        for worker in reversed(range(num_workers)):
            make_parts(phase, {"params": params, **inputs}, first=worker, of=num_workers)
    return download.run(params, out=folder / "out", **inputs)


def run_download(
    folder: Path, records: list[dict[str, Any]], *, num_workers: int = 1, **changes: Any
) -> Downloaded:
    """Download `records` in `folder`."""
    write_table(folder / "records.parquet", IMAGE_RECORDS, records)
    summary = run_stage(folder, changed(**changes), num_workers=num_workers)
    assert summary.num_in == summary.num_kept + sum(summary.dropped.values()) == len(records)
    rows = read_table(folder / "out" / "manifest.parquet", MANIFEST)
    return Downloaded(rows, read_table(folder / "out" / "removed.parquet", REMOVED), summary)


if __name__ == "__main__":
    run_stage(Path(sys.argv[1]), DownloadParams.model_validate_json(sys.argv[2]), num_workers=json.loads(sys.argv[3]))
