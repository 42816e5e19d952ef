"""A flow as a command: what a person is told."""

import os
import subprocess
import sys
from pathlib import Path


def test_a_server_that_does_not_answer_is_told_in_a_sentence(tmp_path: Path, repository: Path) -> None:
    settings = {"PREFECT_API_URL": "http://127.0.0.1:9/api", "PREFECT_HOME": str(tmp_path / "prefect")}
    done = subprocess.run(
        [sys.executable, "-m", "flows.curation"], cwd=tmp_path, text=True, capture_output=True, check=False,
        timeout=120, env={**os.environ, "PYTHONPATH": str(repository), **settings},
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("curation: Prefect's server does not answer (Failed to reach API at http://127.0.0.1:9/api")
    assert "Traceback" not in done.stderr
