"""push and pull, on a file system that renames and one that does not, with kills and damage."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import fsspec
import pytest
from stores import ALL, blobs, contents, empty_store, fill, name_of, set_store

from dinov2.store import Store, StoreParams
from dinov2.store.__main__ import main

ROOT = Path(__file__).parents[2]


@pytest.fixture(params=["folder", "memory"])
def remote(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A file system that renames, and one that does not."""
    return f"memory://{uuid4().hex}" if request.param == "memory" else str(tmp_path / "far/remote")


def test_what_was_pushed_is_pulled_into_an_empty_store(repository: Path, remote: str) -> None:
    assert main(["push", "--remote", remote]) == 0
    assert contents(remote) == ALL
    empty_store("store")
    assert main(["pull", "--remote", remote]) == 0
    assert contents("store") == ALL


def test_a_store_that_is_remote_is_pushed_and_pulled_too(repository: Path) -> None:
    url = f"memory://{uuid4().hex}"
    set_store(repository, url=url, cache="cache", remote="remote")
    fill(repository, [b"one", b"two" * 1000, b""], None)
    assert contents(url) == ALL
    assert main(["push"]) == 0
    assert contents("remote") == ALL
    empty_store(url)
    assert main(["pull"]) == 0
    assert contents(url) == ALL


def test_only_what_is_missing_or_cut_short_is_copied(
    repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["push"]) == 0
    far = Store(StoreParams(url="remote", cache="", remote=None))
    kept, cut = Path(far.path(name_of(b"one"))), Path(far.path(name_of(b"two" * 1000)))
    os.utime(kept, (1, 1))
    cut.write_bytes(b"two")
    capsys.readouterr()
    assert main(["push"]) == 0
    assert "push: 1 of 3 blobs copied (0.0 MB), 2 were there" in capsys.readouterr().out
    assert contents("remote") == ALL
    assert kept.stat().st_mtime == 1


def test_a_damaged_blob_is_neither_pushed_nor_pulled_and_the_others_are(
    repository: Path, remote: str, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = name_of(b"two" * 1000)
    path = Path("store") / bad[:2] / bad
    path.write_bytes(b"owt" * 1000)
    assert main(["push", "--remote", remote]) == 1
    assert f"{bad}: damaged where it comes from" in capsys.readouterr().err
    assert contents(remote) == blobs(b"one", b"")
    path.write_bytes(b"two" * 1000)
    assert main(["push", "--remote", remote]) == 0
    far = Store(StoreParams(url=remote, cache="", remote=None))
    far.filesystem.pipe_file(far.path(bad), b"owt" * 1000)
    empty_store("store")
    assert main(["pull", "--remote", remote]) == 1
    assert contents("store") == blobs(b"one", b"")


def test_bytes_that_change_on_the_way_are_noticed(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that drops the last byte of what is written to it."""
    local = fsspec.get_filesystem_class("file")
    whole: Callable[..., Any] = local._open

    def cut(self: Any, path: str, mode: str = "rb", **options: Any) -> Any:
        stream = whole(self, path, mode=mode, **options)
        if "w" in mode:
            stream.write = lambda data, write=stream.write: write(data[:-1])
        return stream

    monkeypatch.setattr(local, "_open", cut)
    assert main(["push"]) == 1
    assert contents("remote") == blobs(b"")


def test_a_blob_that_a_power_cut_left_empty_is_mended_by_the_stage_that_makes_it_again(repository: Path) -> None:
    store = Store(StoreParams(url="store", cache="", remote=None))
    Path(store.path(name_of(b"one"))).write_bytes(b"")
    fill(repository, [b"one"], None)
    assert contents("store") == ALL


def test_an_error_of_a_remotes_client_fails_its_blob_and_no_other(
    repository: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Clients have errors of their own, e.g. paramiko's SSHException."""
    memory, bad = fsspec.get_filesystem_class("memory"), name_of(b"one")
    whole: Callable[..., Any] = memory._open

    def failing(self: Any, path: str, mode: str = "rb", **options: Any) -> Any:
        if "w" in mode and path.endswith(bad):
            raise RuntimeError("session is not open")
        return whole(self, path, mode=mode, **options)

    monkeypatch.setattr(memory, "_open", failing)
    remote = f"memory://{uuid4().hex}"
    assert main(["push", "--remote", remote]) == 1
    assert f"store: {bad}: session is not open" in capsys.readouterr().err
    assert contents(remote) == blobs(b"two" * 1000, b"")


KILLED = """
import os, signal, sys, threading
from dinov2.store import __main__ as command, Store
whole, num = Store.receive, 0
def receive(self, name, pieces):
    def slow():
        global num
        for piece in pieces:
            yield piece
            num += 1
            if num == 2:
                os.kill(os.getpid(), signal.SIGKILL)
    whole(self, name, slow())
Store.receive = receive
command.main(["push", "--jobs", "1"])
"""


def test_a_push_that_is_killed_leaves_whole_blobs_only_and_goes_on(
    repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    killed = subprocess.run(
        [sys.executable, "-c", KILLED], env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False, timeout=60
    )
    assert killed.returncode == -signal.SIGKILL
    left = contents("remote")
    whole = {name: content for name, content in left.items() if not name.endswith(".tmp")}
    assert whole == blobs(b"one", b"")
    assert len(left) == 3
    assert main(["push"]) == 0
    assert "push: 1 of 3 blobs copied" in capsys.readouterr().out
    assert contents("remote") == ALL  # nor is the killed writer's file there any more


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["push"], "there is no remote: set store.remote in params.yaml, or give --remote URL"),
        (["push", "--remote", "store"], "the remote store is the store itself"),
        (["push", "--remote", "nothing://x"], "the store nothing://x can't be opened (Protocol not known: nothing)"),
        (["push", "--remote", "s3://me:secret@bucket"], "put it into the environment (AWS_ACCESS_KEY_ID"),
        (["push", "--remote", "x", "--jobs", "0"], "--jobs is 0; give 1 or more"),
        (["verify", "--jobs", "0"], "--jobs is 0; give 1 or more"),
        (["pull", "--remote", "x"], "3 blobs are not in the remote x, the first"),
        (["gc", "--projects", "nowhere"], "--projects nowhere is no folder"),
        (["verify", "--params", "nowhere.yaml"], "nowhere.yaml can't be read"),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_code_2(
    repository: Path, arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    set_store(repository, url="store", cache="cache", remote=None)
    if arguments[0] == "pull":
        empty_store("store")
    assert main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert told in line
    assert "secret" not in line


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('{"../../x.tar": 1}', "names '../../x.tar' of 1 bytes, which is no blob"),
        ("{", "can't be read"),
        ("[]", "is not a list of blobs and their sizes"),
    ],
)
def test_a_pin_that_is_none_is_a_mistake(
    repository: Path, text: str, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (repository / "data/download/blobs.json").write_text(text)
    for verb in ("push", "pull", "verify", "gc"):
        assert main([verb]) == 2
        assert told in capsys.readouterr().err
    assert contents("store") == ALL


def test_without_an_output_nothing_is_pushed_or_removed(repository: Path) -> None:
    for path in repository.glob("data/**/blobs.json"):
        path.unlink()
    assert main(["push"]) == 2
    assert main(["gc"]) == 2
    assert contents("store") == ALL


def test_a_missing_blob_is_told_with_what_would_bring_it(
    repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gone = name_of(b"one")
    Path("store", gone[:2], gone).unlink()
    assert main(["push"]) == 2
    assert f"the first: {gone}; `pull` them from another remote, or run `dvc repro -f` of data/download" in (
        capsys.readouterr().err
    )
    assert contents("remote") == blobs(b"two" * 1000, b"")


