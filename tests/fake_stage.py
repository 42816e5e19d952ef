"""A stage for tests of the flows: `python fake_stage.py <instance> <out>` sleeps, prints, and leaves what a stage does.

How long and with what end is read from behaviour.json: {"seconds": {"dedup": 1.0}, "fails": {"dedup": ["crash"]}}; of
the ends each start takes one. It notes what it does in events.jsonl, and on SIGTERM that it cancelled its job.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path


def note(instance: str, event: str) -> None:
    """Append to events.jsonl."""
    with Path("events.jsonl").open("a") as events:
        events.write(json.dumps({"stage": instance, "event": event, "time": time.time(), "pid": os.getpid()}) + "\n")


def main(instance: str, out: Path) -> int:
    """Be the stage."""
    stage = instance.split("@", maxsplit=1)[0]
    behaviour = json.loads(Path("behaviour.json").read_text())
    failures = behaviour.get("fails", {}).get(instance, [])
    earlier = Path("events.jsonl").read_text().splitlines() if Path("events.jsonl").exists() else []
    attempt = sum(json.loads(line)["stage"] == instance and json.loads(line)["event"] == "begin" for line in earlier)

    def cancel(*_: object) -> None:
        note(instance, "cancelled its job")
        sys.exit(130)

    signal.signal(signal.SIGTERM, cancel)
    note(instance, "begin")
    seconds = behaviour.get("seconds", {}).get(stage, 0.0)
    ends = time.monotonic() + seconds
    work = Path("work") / instance / "0123456789abcdef"
    work.mkdir(parents=True, exist_ok=True)
    while time.monotonic() < ends:
        sys.stdout.write(f"{instance} works\n")
        sys.stdout.flush()
        time.sleep(0.1)
    if attempt < len(failures):
        kind = failures[attempt]
        mark = work.parent / "failure.json"
        mark.write_text(json.dumps({"kind": kind, "sentence": f"a {kind} on purpose"}))
        note(instance, kind)
        return {"mistake": 2, "gate": 3, "crash": 1}[kind]
    for folder in [out / name for name in behaviour.get("folders", {}).get(instance, [""])]:
        folder.mkdir(parents=True)
    (out / "metrics.json").write_text(json.dumps({"kept_share": 0.5}))
    counts = {"num_in": 4, "num_kept": 2, "dropped": {"tiny": 2}}
    (out / "record.json").write_text(json.dumps({"counts": counts}))
    if stage == "report":
        (out / "summary.txt").write_text("the summary\n")
        (out / "report.html").write_text("<html></html>")
    note(instance, "end")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2])))
