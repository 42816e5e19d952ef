"""A stage's and a pipeline's side of tracking: they say in their work folders what there is to ship.

`tracking.json` says it, `tracking/` keeps the files that go along, so that neither a tracking server that is down nor a
later run loses any. tasks/shipping.py ships; nothing here imports MLflow or talks to a server.
"""

import contextlib
import getpass
import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from dinov2.params import flatten, masked, read_yaml
from dinov2.records import read_json, sha256_file, write_json
from dinov2.workspace import is_copy, workspace
from tasks.processes import living, start_time
from tasks.system import STARTS

if TYPE_CHECKING:
    from tasks.call import StageCall

WORK, PARAMS = Path("work"), Path("params.yaml")
PARENT_RUN = "DINOV2_PIPELINE_RUN"
"""Environment variable with the key of the pipeline run that a stage belongs to."""
PIPELINES = "pipeline"
"""Folder below work/ with a folder a pipeline run, named by its key."""
MARK = "tracking.json"
KEPT = "tracking"
"""Folder beside it, with a folder an attempt: files that are to be shipped."""
BACKBONES = "backbones"
COPIES = "copies"
"""Folder below work/ with what experiments that ran in copies of the repository could not ship."""
TROUBLE = "tracking-trouble.json"
WEIGHTS = "backbone.safetensors"
CARD = "backbone.json"
LATER = "the run goes on; its curves are kept and shipped by `python -m tasks.tracking`"


class Tracked:
    """A stage's side of tracking: says what is to be shipped and leaves it to the background process.

    with Tracked(call, module, warn=print) as tracked:
        ... the job runs, `work/metrics.jsonl` grows ...
        tracked.finish("FINISHED", out, metrics)
    """

    def __init__(self, call: "StageCall", module: ModuleType, *, warn: Callable[[str], None]) -> None:
        self.call = call
        self.work = call.work
        self.warn = warn
        self.tags = {"stage": call.stage, "instance": call.instance, "fingerprint": call.fingerprint, **provenance()}
        params = call.params.model_dump(mode="json")
        self.mark: dict[str, Any] = {
            **_beginning(call.stage, "stage", self.tags),
            "instance": call.instance,
            "stage": call.stage,
            "pipeline": os.environ.get(PARENT_RUN),
            "params": params,
            "models": models_of(call, module),
            "inputs": {name: [call.paths[name], digest] for name, digest in call.inputs.items()},
            "shared": _hash([call.stage, call.version, params]) if call.names else None,
            "backbones": {},
            "judged": self._judged(),
        }

    def _judged(self) -> dict[str, Any] | None:
        """Which backbone this stage judges, and a name of how: results of equal names can be compared."""
        call = self.call
        if not call.names or "backbone" not in call.paths:
            return None
        weights = Path(call.paths["backbone"]) / WEIGHTS
        others = {name: digest for name, digest in call.inputs.items() if name != "backbone"}
        judge = _hash([call.version, call.params.model_dump(mode="json"), others])
        return {"sha256": sha256_file(weights) if weights.exists() else None, "judge": judge}

    def __enter__(self) -> "Tracked":
        write_json(self.work / MARK, self.mark)
        start_shipping(self.work.parents[1])
        return self

    def finish(self, status: str, out: Path, metrics: Mapping[str, float], reason: str = "") -> None:
        """What the run ends with: FINISHED, or FAILED for `reason`; what `out` shows is kept to be shipped."""
        self.mark |= {"status": status, "metrics": dict(metrics)}
        self.mark["last_tags"] = {"reason": reason[:500]}
        if status != "FINISHED":
            return
        kept = self.work / KEPT / str(self.mark["attempt"])
        self.mark["files"] = _keep(kept, [*sorted(out.glob("figures/*.png")), *sorted(out.glob("*.html"))])
        for model in self.mark["models"] if not self.call.names else ():
            folder = out if (out / CARD).exists() else out / model
            if (folder / CARD).exists():
                (kept / BACKBONES / model).mkdir(parents=True)
                for name in (WEIGHTS, CARD):
                    _link(folder / name, kept / BACKBONES / model / name)
                self.mark["backbones"][model] = sha256_file(folder / WEIGHTS)

    def __exit__(self, *exception: object) -> None:
        self.mark["ended"] = time.time()
        if self.mark["status"] == "RUNNING":
            self.mark["status"] = "KILLED"
        with contextlib.suppress(OSError):  # a full disk: the stage's own sentence counts
            write_json(self.work / MARK, self.mark)
        trouble = trouble_since(self.work.parents[1], self.mark["started"])
        if trouble is not None:
            self.warn(trouble)


def models_of(call: "StageCall", module: ModuleType) -> dict[str, Any]:
    """The models that a stage trains or judges, each with its own params: a run each below the stage's.

    A stage says it by a function `models` of its params; a stage that is called once a model is told the model's name.
    """
    if call.names:
        return {name: call.params.model_dump(mode="json") for name in call.names.values()}
    return module.models(call.params) if hasattr(module, "models") else {}


def start_parent(name: str, tags: Mapping[str, str]) -> str:
    """A pipeline run begins in this process: returns its key, for PARENT_RUN. Touches no server."""
    key = uuid.uuid4().hex
    mark = {**_beginning(name, "pipeline", {**tags, **provenance()}), "instance": name, "models": {}, "inputs": {}}
    mark |= {"params": _params_file(), "pipeline": None, "shared": None, "backbones": {}, "judged": None}
    write_json(WORK / PIPELINES / key / MARK, mark)
    start_shipping(WORK)
    return key


def end_parent(key: str, status: str, metrics: Mapping[str, float], files: list[Path]) -> None:
    """The pipeline run ends as FINISHED, FAILED or KILLED; a second end is not heard."""
    work = WORK / PIPELINES / key
    mark: dict[str, Any] | None = read_json(work / MARK)
    if mark is None or mark["status"] != "RUNNING":  # None: `make clean` came by
        return
    folder = work / KEPT / str(mark["attempt"])
    kept = _keep(folder, [path for path in (*files, PARAMS, Path("dvc.yaml"), Path("dvc.lock")) if path.exists()])
    if PARAMS.exists():
        (folder / PARAMS.name).write_text(masked(PARAMS.read_text()))
    mark |= {"status": status, "metrics": dict(metrics), "files": kept, "ended": time.time()}
    write_json(work / MARK, mark | {"last_tags": {"dvc_lock": _dvc_lock()}})
    start_shipping(WORK)


def _keep(folder: Path, files: list[Path]) -> list[str]:
    """Copy files to where they wait to be shipped, however long that takes; returns their names there."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in files:
        shutil.copyfile(path, folder / path.name)
    return [path.name for path in files]


def _link(source: Path, target: Path) -> None:
    """A second name for a large file, so that it outlives the first; a copy where the file system has none."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _beginning(name: str, kind: str, tags: Mapping[str, str]) -> dict[str, Any]:
    return {
        "attempt": time.time_ns(),
        "kind": kind,
        "name": name,
        "tags": dict(tags),
        "process": [os.getpid(), start_time(os.getpid())],
        "started": time.time(),
        "ended": None,
        "status": "RUNNING",
        "metrics": {},
        "files": [],
        "last_tags": {},
    }


def _params_file() -> dict[str, Any]:
    """As it is, but for logins in URLs: the stage that will refuse them has not begun."""
    return {key: masked(str(value)) for key, value in flatten(read_yaml(PARAMS)).items()} if PARAMS.exists() else {}


def provenance() -> dict[str, str]:
    """Commit, command, machine, and what DVC's lock says: what may differ between two runs with the same result."""
    commit, branch = _git("rev-parse", "HEAD"), _git("rev-parse", "--abbrev-ref", "HEAD")
    changed = _git("status", "--porcelain", "--untracked-files=no", "--", ":!dvc.lock")
    experiment = {"dvc_experiment": os.environ["DVC_EXP_NAME"]} if os.environ.get("DVC_EXP_NAME") else {}
    return {
        **experiment,
        "commit": commit or "none",
        "commit_is_all": str(not changed).lower() if commit else "false",
        "branch": branch or "none",
        "dvc_lock": _dvc_lock(),
        "command": masked(" ".join(sys.argv)),
        "host": socket.gethostname(),
        "user": _user(),
    }


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container without a name for its user
        return str(os.getuid())


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=False)
    except OSError:  # no git
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _dvc_lock() -> str:
    """sha256 of dvc.lock, or `none`."""
    lock = Path("dvc.lock")
    return sha256_file(lock) if lock.exists() else "none"


def _hash(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def start_shipping(root: Path) -> None:
    """Start the background process; where one runs already, the new one sees that and ends."""
    if is_copy():
        return  # which will be gone before that process has shipped all: see ship_from_copy
    with (root / "tracking.log").open("a") as log:
        subprocess.Popen(
            [sys.executable, "-m", "tasks.tracking", "--follow"],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def ship_from_copy() -> None:
    """Where the repository is a copy that an experiment of DVC is run in: ship now, since the copy is then removed.

    What the server does not take is kept in the repository, whose next stage ships it.
    """
    if not is_copy():
        return
    done = subprocess.run([sys.executable, "-m", "tasks.tracking"], stdin=subprocess.DEVNULL, check=False)
    try:
        for work in [path.parent for path in WORK.glob(f"*/*/{MARK}")] if done.returncode != 0 else []:
            _keep_copy(work, workspace() / WORK / COPIES / "-".join([Path.cwd().name, *work.parts[-2:]]))
    except OSError as error:  # the stage itself has ended well
        sys.stderr.write(f"tracking: a run could not be kept ({error}); its curves go with {Path.cwd()}\n")


def _keep_copy(work: Path, kept: Path) -> None:
    mark = json.loads((work / MARK).read_text())
    if (kept / MARK).exists() and json.loads((kept / MARK).read_text()) == mark:
        return
    for pattern in ("*.jsonl", f"{STARTS}/*", f"{KEPT}/**/*", "mlflow.json"):
        for path in [path for path in work.glob(pattern) if path.is_file()]:
            target = kept / path.relative_to(work)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
    write_json(kept / MARK, mark)  # last: from now on it is shipped


def trouble_since(root: Path, started: float) -> str | None:
    """The sentence for a server that took nothing at its last try, if that was after `started` (seconds)."""
    path = root / TROUBLE
    with contextlib.suppress(OSError, ValueError):
        if path.stat().st_mtime >= started:
            return json.loads(path.read_text())["sentence"]
    return None


def read_mark(work: Path) -> tuple[dict[str, Any], str] | None:
    """What a work folder tells of its last start, and how that stands: KILLED where nobody lives to tell the end.

    None if it tells nothing that can be read.
    """
    mark = read_json(work / MARK)
    if mark is None or mark["status"] != "RUNNING" or living(*mark["process"]) is not None:
        return mark and (mark, mark["status"])
    mark = read_json(work / MARK)  # it may have told just before it ended
    return mark and (mark, "KILLED" if mark["status"] == "RUNNING" else mark["status"])
