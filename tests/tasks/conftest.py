"""What tests of tracking share: a folder of their own with a store, and no process in the background."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from tracked_runs import tracking

from tasks import tracked
from tasks.server import TrackingParams, open_client
from tasks.tracked import PARENT_RUN


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An SQLite file with MLflow's tables, which take seconds to make."""
    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    open_client(tracking(f"sqlite:///{path}")).search_experiments()
    return path


@pytest.fixture
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, empty; stages start no process that ships: a test says when."""
    nothing: Callable[[Path], None] = lambda root: None  # noqa: E731
    monkeypatch.setattr(tracked, "start_shipping", nothing)
    monkeypatch.delenv(PARENT_RUN, raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def given(alone: Path, empty_store: Path) -> TrackingParams:
    """Tracking to a store in the current folder."""
    shutil.copy(empty_store, alone / "mlflow.db")
    return tracking(f"sqlite:///{alone}/mlflow.db")
