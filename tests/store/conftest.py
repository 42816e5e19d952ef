"""A repository for each test."""

from pathlib import Path

import pytest
from stores import fill, set_store


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a store, and two outputs that pin three blobs, one of them both."""
    monkeypatch.chdir(tmp_path)
    set_store(tmp_path, url="store", cache="cache", remote="remote")
    fill(tmp_path, [b"one", b"two" * 1000], "data/download")
    fill(tmp_path, [b"two" * 1000, b""], "data/evaluate/a")
    return tmp_path
