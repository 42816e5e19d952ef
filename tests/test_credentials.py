"""Logins and tokens: refused in params, never repeated, and not in what a stage leaves behind."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from dvc_project import NO_SERVER, environment

from dinov2.params import InputError, Params, load_section, masked, read_yaml, validate, without_credentials
from dinov2.store import StoreParams
from tasks.resources import LaunchParams
from tasks.tracking import TrackingParams

ROOT = Path(__file__).parents[1]
SHIPPED: dict[str, Any] = read_yaml(ROOT / "params.yaml")
WITH_SECRET = [
    "https://me:s3cret@host/x",
    "https://s3cret@host",
    "https://me:s3/cret@host/x",
    "https://me:s3@cret@host/",
    "sftp://me:s3cret@host/x",
    "postgresql+psycopg2://me:s3cret@host/db",
    "postgresql://me@host/db?sslmode=require&password=s3cret",
    "simplecache::https://me:s3cret@host/x",
    "https://account.host/container?sig=s3cret&se=1",
    "s3://KEY:s3cret@bucket/x",
    "HTTPS://me:s3cret@host",
    "https://host/?X-Amz-Security-Token=s3cret",
    "https://host/?api_key=s3cret",
]
WITHOUT = [
    "store",
    "/data/a:b@c",
    "s3://bucket/x",
    "http://127.0.0.1:5000",
    "http://host:8080/path@x?page=2",
    "sftp://me@host/x",
    "abfs://container@account.host/x",
    "sqlite:///mlflow.db",
    "file:///a:b@c",
]


@pytest.mark.parametrize("url", WITH_SECRET)
def test_a_url_with_a_secret_is_refused_without_repeating_it(url: str) -> None:
    with pytest.raises(InputError, match=r"URL holds a login or a token.* put it into the environment") as refused:
        without_credentials(url)
    assert "cret" not in str(refused.value)
    assert "cret" not in masked(f"python -m tasks.x --crawl {url} --out y")
    assert masked(f"--crawl {url} --out y").endswith(" --out y")


@pytest.mark.parametrize("url", WITHOUT)
def test_a_url_without_is_taken_and_shown_as_it_is(url: str) -> None:
    assert without_credentials(url) == masked(url) == url


@pytest.mark.parametrize(
    ("section", "kind", "key", "variable"),
    [
        ("store", StoreParams, "url", "AWS_SECRET_ACCESS_KEY"),
        ("store", StoreParams, "remote", "AWS_SECRET_ACCESS_KEY"),
        ("tracking", TrackingParams, "uri", "MLFLOW_TRACKING_PASSWORD"),
    ],
)
def test_params_with_a_secret_are_refused_with_the_variable_to_use(
    section: str, kind: type[Params], key: str, variable: str
) -> None:
    url = "s3://me:s3cret@bucket" if section == "store" else "https://me:s3cret@host"
    with pytest.raises(InputError, match=rf"^{section}: a \w+ URL holds .*{variable}") as refused:
        validate(kind, {**SHIPPED[section], key: url}, where=section)
    assert "s3cret" not in str(refused.value)


def test_a_mistake_elsewhere_does_not_show_the_secret_beside_it(tmp_path: Path) -> None:
    """A key that is misspelt is told with its value, a list that should be a mapping too."""
    for key, value in (("urll", WITH_SECRET[0]), ("url", [WITH_SECRET[0]])):
        with pytest.raises(InputError, match=key) as refused:
            validate(StoreParams, {**SHIPPED["store"], key: value}, where="store")
        assert "s3cret" not in str(refused.value)


def test_what_a_stage_leaves_behind_holds_no_secret_of_its_command_or_environment(tmp_path: Path) -> None:
    pages = tmp_path / "inputs/demo/crawl"
    pages.mkdir(parents=True)
    (pages / "a.html").write_text('<html><body><img src="http://a.example/1.jpg"></body></html>')
    params = tmp_path / "params.yaml?token=s3cret"
    params.write_text((ROOT / "params.yaml").read_text().replace("sqlite:///mlflow.db", NO_SERVER))
    (tmp_path / "params.yaml").write_bytes(params.read_bytes())
    words = ["tasks.crawl", "--crawl", "inputs/demo/crawl", "--out", "data/crawl", "--params", params.name]
    secrets = {"AWS_SECRET_ACCESS_KEY": "s3cret", "MLFLOW_TRACKING_TOKEN": "s3cret"}
    done = subprocess.run(
        [sys.executable, "-m", *words], cwd=tmp_path, env={**environment(), **secrets}, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert b"s3cret" not in done.stdout + done.stderr
    left = [path for folder in ("work", "data") for path in (tmp_path / folder).rglob("*") if path.is_file()]
    assert [path.name for path in left if path.name == "run.json"]
    assert [path for path in left if b"s3cret" in path.read_bytes()] == []


def test_a_batch_script_names_no_variable_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """SLURM passes the environment on by itself."""
    from tasks.launch import sbatch_header

    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s3cret")
    launch = load_section(ROOT / "presets/paper-vitg.yaml", "launch", LaunchParams)
    assert launch.cluster == "slurm"
    script = "\n".join(sbatch_header("pretrain", launch))
    assert "srun" in script
    assert "s3cret" not in script
    assert os.environ["AWS_SECRET_ACCESS_KEY"] == "s3cret"
