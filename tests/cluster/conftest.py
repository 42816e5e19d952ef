"""The cluster that these tests run on, and a project for each."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from slurm_lab import NEEDED, Cluster, Project, wait


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """These tests are run by `make test-cluster` alone."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.cluster)


@pytest.fixture(scope="session")
def daemons(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """The cluster, started once."""
    absent = [name for name in NEEDED if shutil.which(name) is None]
    if os.geteuid() != 0 or absent:
        pytest.skip(f"needs root and Debian's slurmctld, slurmd, slurm-client and munge; missing: {absent or 'root'}")
    cluster = Cluster(tmp_path_factory.mktemp("slurm"))
    cluster.up()
    yield cluster
    cluster.down()


@pytest.fixture
def cluster(daemons: Cluster) -> Iterator[Cluster]:
    """The cluster with all nodes up and no job."""
    daemons.up()
    yield daemons
    subprocess.run(["scancel", "--user=root"], check=False)
    wait(lambda: not daemons.jobs(), "the queue to be empty")


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """A project on a file system that all nodes share."""
    return Project(tmp_path)
