"""verify and gc: what is damaged is put aside, what nothing names goes, and nothing else."""

import errno
import fcntl
import os
import subprocess
import sys
import time
from pathlib import Path
from uuid import uuid4

import pyarrow as pa
import pytest
from dvc_project import NO_SERVER, environment
from stores import ALL, add, blobs, contents, fill, name_of, set_store

from dinov2.params import InputError
from dinov2.records import write_json, write_table
from dinov2.store import Store, StoreParams, temporary_of
from dinov2.store.__main__ import main

ROOT = Path(__file__).parents[2]


def test_verify_puts_damaged_blobs_aside_and_pull_brings_them_back(
    repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["push"]) == 0
    assert main(["verify"]) == 0
    changed, cut, gone = (name_of(content) for content in (b"one", b"two" * 1000, b""))
    Path("store", changed[:2], changed).write_bytes(b"eno")
    Path("store", cut[:2], cut).write_bytes(b"two")
    Path("store", gone[:2], gone).unlink()
    capsys.readouterr()
    assert main(["verify"]) == 1
    errors = capsys.readouterr().err
    assert f"{changed} of data/download is damaged: other bytes than its own; it is now" in errors
    assert f"{cut} of data/evaluate/a is damaged: 3 of 3000 bytes" in errors
    assert f"{gone} of data/evaluate/a is absent" in errors
    assert contents("store/damaged") == {changed: b"eno", cut: b"two"}
    assert main(["pull"]) == 0
    assert main(["verify"]) == 0
    assert main(["gc"]) == 0
    assert contents("store") == ALL


def test_verify_of_a_remote_store_looks_at_the_local_copies_too(repository: Path) -> None:
    store = set_store(repository, url=f"memory://{uuid4().hex}", cache="cache", remote="remote")
    for content in ALL.values():
        store.local(add(store, content))
    copy = Path("cache", name_of(b"one"))
    copy.write_bytes(b"eno")
    assert main(["verify"]) == 0  # the store itself is sound
    assert not copy.exists()
    assert store.local(copy.name).read_bytes() == b"one"


def work_of(repository: Path, stage: str, *, finished: bool) -> Path:
    folder = repository / f"work/{stage}/0123456789abcdef"
    folder.mkdir(parents=True)
    if finished:
        write_json(folder / "run.json", {})
    return folder


def test_gc_removes_what_no_output_and_no_unfinished_work_names(
    repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shard, block, old, other = fill(repository, [b"in a table", b"in a list", b"of earlier params", b"other"], None)
    unfinished = work_of(repository, "download", finished=False)
    write_table(unfinished / "packed/0.parquet", pa.schema([("shard", pa.string())]), [{"shard": shard}])
    waiting = work_of(repository, "embed", finished=True)  # for its gate
    write_json(waiting / "out/embeddings.json", {"pool": {"copy": [block]}})
    finished = work_of(repository, "filter", finished=True)
    write_json(finished / "parts.json", [old])
    untouched = work_of(repository, "dedup", finished=True)
    ended = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    mine = Path(temporary_of(str(repository / "store/ab/x.tar")))
    killed = mine.with_name(mine.name.replace(f".{os.getpid()}.", f".{int(ended.stdout)}."))
    for path in (mine, killed):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"half")

    before = contents("store")
    assert main(["gc", "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "would remove 2 blobs, 1 files of killed writers" in said
    assert contents("store") == before
    assert finished.exists()
    assert main(["gc"]) == 0
    assert said == capsys.readouterr().out.replace("removed", "would remove")
    assert contents("store") == {**ALL, **blobs(b"in a table", b"in a list"), mine.name: b"half"}
    assert not finished.exists()  # it would be gone on with, without its blob
    assert untouched.exists()
    assert {old, other} & set(said.replace("/", "\n").splitlines()) == {old, other}


def test_gc_keeps_what_another_clone_names(repository: Path) -> None:
    (named,) = fill(repository, [b"elsewhere"], "clone/data/download")
    assert main(["gc", "--projects", "clone"]) == 0
    assert named in contents("store")
    assert main(["gc"]) == 0
    assert named not in contents("store")


def test_gc_refuses_where_nobody_can_tell_who_uses_the_store(
    repository: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fill(repository, [b"not named yet"], None)

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    assert main(["gc"]) == 2
    assert "can't be locked (No locks available)" in capsys.readouterr().err
    assert name_of(b"not named yet") in contents("store")


@pytest.mark.parametrize(
    ("file", "told"), [("download/lock", "stage download runs"), ("store.lock", "a job, or a push or pull")]
)
def test_gc_refuses_while_the_store_is_in_use(
    repository: Path, file: str, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    fill(repository, [b"not named yet"], None)
    path = repository / "work" / file
    path.parent.mkdir(parents=True)
    with path.open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        assert main(["gc"]) == 2
    assert told in capsys.readouterr().err
    assert name_of(b"not named yet") in contents("store")
    assert main(["gc"]) == 0
    assert name_of(b"not named yet") not in contents("store")


def test_gc_keeps_what_an_experiment_in_a_copy_of_the_repository_works_on(repository: Path) -> None:
    copy = ".dvc/tmp/exps/standalone/tmpab"
    (repository / copy / "x").mkdir(parents=True)
    (repository / copy / "dvc.yaml").write_text("{}")
    (named,) = fill(repository, [b"in a copy"], f"{copy}/work/download/0123/out")
    subprocess.run(["git", "init", "--quiet"], check=True)  # DVC is asked where its cache is
    assert main(["gc"]) == 0
    assert named in contents("store")


@pytest.mark.parametrize("is_there", [False, True])
def test_gc_refuses_where_an_output_that_dvc_knows_is_nowhere(
    repository: Path, is_there: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    """As after `git clone`, or in a repository whose data/ was removed: what its manifests name is unknown."""
    fill(repository, [b"of filter"], None)
    outs = [{"path": "data/filter", "md5": f"{'0' * 32}.dir", "hash": "md5"}]
    write_json(repository / "dvc.lock", {"schema": "2.0", "stages": {"filter": {"cmd": "x", "outs": outs}}})
    if is_there:
        (repository / "data/filter").mkdir()
    assert main(["gc"]) == (0 if is_there else 2)
    assert (name_of(b"of filter") in contents("store")) is not is_there
    assert ("dvc.lock names data/filter, which is neither there" in capsys.readouterr().err) is not is_there


def test_gc_refuses_where_a_pull_of_an_output_was_stopped(
    repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its listing is in DVC's cache, but not yet the list of its blobs."""
    (blob,) = fill(repository, [b"of filter"], "made")
    (repository / "data/filter").mkdir()
    listed, pins = f"{'0' * 32}.dir", "1" * 32
    write_json(repository / f".dvc/cache/files/md5/00/{listed[2:]}", [{"md5": pins, "relpath": "blobs.json"}])
    outs = [{"path": "data/filter", "md5": listed, "hash": "md5"}]
    write_json(repository / "dvc.lock", {"schema": "2.0", "stages": {"filter": {"cmd": "x", "outs": outs}}})
    subprocess.run(["git", "init", "--quiet"], check=True)  # DVC is asked where its cache is
    assert main(["gc"]) == 2
    assert "dvc.lock names data/filter, which is neither there" in capsys.readouterr().err
    (repository / "made/blobs.json").rename(repository / "data/filter/blobs.json")
    assert main(["gc"]) == 0
    assert blob in contents("store")


def test_a_job_waits_for_a_removal_that_is_under_way(repository: Path) -> None:
    shipped = (ROOT / "params.yaml").read_text()
    (repository / "params.yaml").write_text(shipped.replace("sqlite:///mlflow.db", NO_SERVER))
    (repository / "pages").mkdir()
    (repository / "pages/a.html").write_text('<html><body><img src="http://a.example/1.jpg"></body></html>')
    words = [sys.executable, "-m", "tasks.crawl", "--crawl", "pages", "--out", "data/crawl"]
    (repository / "work").mkdir()
    with (repository / "work/store.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        stage = subprocess.Popen(words, env=environment(), stdout=subprocess.DEVNULL)
        while not list(repository.glob("work/crawl/*/job/job.json")):
            assert stage.poll() is None
            time.sleep(0.05)
        with pytest.raises(subprocess.TimeoutExpired):
            stage.wait(timeout=8)
        assert not list(repository.glob("work/crawl/*/pages"))
    assert stage.wait(timeout=60) == 0


def test_a_stage_whose_earlier_blobs_are_gone_says_what_to_do(repository: Path) -> None:
    store = Store(StoreParams(url="store", cache="", remote=None))
    with pytest.raises(InputError, match=r"python -m dinov2.store pull`, or remove work/x/1 and run the stage again"):
        store.pin(Path("work/x/1/out"), [name_of(b"never")])


def test_a_name_that_leads_out_of_the_store_is_refused(repository: Path) -> None:
    store = Store(StoreParams(url="store", cache="cache", remote=None))
    with pytest.raises(InputError, match="is not a blob's name"):
        store.local("../params.yaml")
