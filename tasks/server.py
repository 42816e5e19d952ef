"""Where runs are shipped to: section `tracking` of params.yaml, and the MLflow client that it names."""

import logging
import os
import posixpath
import re
import socket
from typing import TYPE_CHECKING, Annotated, NamedTuple
from urllib.parse import urlsplit

from pydantic import Field

from dinov2.params import InputError, Params, Url
from dinov2.workspace import workspace
from tasks.tracked import LATER

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

SCHEMES = ("sqlite", "http", "https", "file", "postgresql", "mysql", "mssql", "databricks")
TIMEOUT_S = 120  # nobody waits for an answer, and a question that was given up may have been heard
MAX_KEY_CHARS = 250
PAGES = "http://127.0.0.1:5000"
"""Where `make mlflow` shows what a file holds."""


class TrackingParams(Params):
    """Section `tracking` of params.yaml; no stage depends on it."""

    uri: Url
    """MLflow tracking URI; `sqlite:///mlflow.db` is a file in the repository."""
    experiment: str
    """MLflow experiment that holds the runs; registered models are called `<experiment>-<model>`."""
    ship_every_s: Annotated[float, Field(gt=0)]
    """Seconds between two batches of curves."""
    idle_s: Annotated[float, Field(gt=0)]
    """The background process ends after this long without a stage."""

    def absolute_uri(self) -> str:
        """The URI with a relative SQLite path made absolute, since jobs may run elsewhere. Raises InputError."""
        scheme, separator, rest = self.uri.partition("://")
        if scheme in ("http", "https"):
            try:
                address = urlsplit(self.uri)
                names_host = address.port != 0 and bool((address.hostname or "").encode("idna"))
            except ValueError:
                names_host = False
            if not names_host:
                raise InputError(f"tracking.uri is '{self.uri}', no address of a host; write e.g. http://host:5000")
        if not separator or scheme.partition("+")[0] not in SCHEMES:
            raise InputError(f"tracking.uri is '{self.uri}', of no kind MLflow knows; write e.g. sqlite:///mlflow.db")
        if scheme == "sqlite" and not rest.startswith(("//", "/file:")):
            return f"sqlite:////{(workspace() / rest[1:]).as_posix().lstrip('/')}"
        return self.uri

    def trouble(self) -> str | None:
        """The sentence for a server that can be seen at once not to answer; None for one that may, and for files."""
        address = urlsplit(self.uri)
        if address.scheme not in ("http", "https") or address.hostname is None:
            return None
        port = address.port or (443 if address.scheme == "https" else 80)
        try:
            socket.create_connection((address.hostname, port), timeout=1).close()
        except OSError as error:
            return f"tracking server {self.uri} can't be reached ({error.strerror or error}); {LATER}"
        return None


class Server(NamedTuple):
    """An MLflow server, or a file that is one, and the experiment on it."""

    uri: str
    client: "MlflowClient"
    experiment: str
    experiment_id: str
    is_new: bool
    """Whether the experiment was just made."""

    def model(self, name: str) -> str:
        """What the registry calls a model; it takes no `/` and `:`, and its filters no quotes."""
        return re.sub(r"[/:'\"]", "-", f"{self.experiment}-{name}")


def allowed_key(key: str) -> str:
    """A param's or metric's key as MLflow takes it: sources, students and models are called as people like."""
    allowed = re.sub(r"[^\w.\-/: ]", "_", key)[:MAX_KEY_CHARS]
    is_path = posixpath.normpath(allowed) == allowed and not allowed.startswith(("/", ".."))
    return allowed if is_path else allowed.replace("/", "_") or "_"


def open_client(params: TrackingParams) -> "MlflowClient":
    """MLflow's client, told not to try for minutes. The import takes five seconds; no server is asked yet."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")  # the next pass is the retry, and looks first
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", str(TIMEOUT_S))
    os.environ.setdefault("MLFLOW_SQLALCHEMYSTORE_POOLCLASS", "NullPool")  # a kept one remembers a read-only file
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    logging.getLogger("alembic").setLevel(logging.WARNING)
    from mlflow.tracking import MlflowClient

    logging.getLogger("mlflow").setLevel(logging.ERROR)
    return MlflowClient(tracking_uri=params.absolute_uri())


def connect(params: TrackingParams) -> Server:
    """Find the experiment or make it; raises what MLflow raises when that fails."""
    client = open_client(params)
    found = client.get_experiment_by_name(params.experiment)
    if found is not None:
        return Server(params.uri, client, params.experiment, found.experiment_id, is_new=False)
    artifacts = (workspace() / "mlartifacts").as_uri() if params.uri.startswith("sqlite") else None
    kind = {"mlflow.experimentKind": "custom_model_development"}  # the page shows runs and curves, not chats
    made = client.create_experiment(params.experiment, artifact_location=artifacts, tags=kind)
    return Server(params.uri, client, params.experiment, made, is_new=True)
