"""Of a stage's work, what was cut short goes, and nothing else."""

import errno
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dinov2.params import InputError
from dinov2.records import UnreadableError
from tasks.damage import OPENED, damage_forgotten, forget_damaged
from tasks.fan_out import MADE
from tasks.follow import JobFailedError

TABLE = pa.table({"row": np.arange(1000)})


def write(path: Path) -> None:
    """A whole file of the kind that its suffix says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    match path.suffix:
        case ".parquet":
            pq.write_table(TABLE, path)
        case ".arrow":
            with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, TABLE.schema) as writer:
                writer.write_table(TABLE)
        case ".npy":
            np.save(path, np.arange(1000))
        case ".npz":
            np.savez(path, rows=np.arange(1000))
        case _:
            path.write_text(json.dumps(list(range(1000))))


@pytest.mark.parametrize("suffix", list(OPENED))
@pytest.mark.parametrize("kept_bytes", [0, 1, 100])
def test_what_was_cut_short_is_made_again(tmp_path: Path, suffix: str, kept_bytes: int) -> None:
    whole, damaged = tmp_path / f"parts/0{suffix}", tmp_path / f"parts/deeper/1{suffix}"
    mark = tmp_path / MADE / "phase/000000"
    for path in (whole, damaged, mark):
        write(path)
    damaged.write_bytes(damaged.read_bytes()[:kept_bytes])
    assert forget_damaged(tmp_path) == [damaged]
    assert whole.exists()
    assert not damaged.exists()
    assert not mark.exists()
    assert forget_damaged(tmp_path) == []


@pytest.mark.parametrize("place", ["mlflow.json", "job-1/job.json", "checkpoints/1/a.json", "out/a.json", "x/a.tmp"])
def test_what_others_look_after_is_left_alone(tmp_path: Path, place: str) -> None:
    path, mark = tmp_path / place, tmp_path / MADE / "phase/000000"
    for one in (path, mark):
        write(one)
    path.write_text("{")
    assert forget_damaged(tmp_path) == []
    assert mark.exists()


@pytest.mark.parametrize("error", [UnreadableError("it is cut short"), RuntimeError("no sense in it")])
def test_what_failed_over_damage_is_worth_another_try(tmp_path: Path, error: Exception) -> None:
    (tmp_path / "parts").mkdir()
    for is_damaged in (True, False):
        if is_damaged:
            (tmp_path / "parts/0.json").write_text("{")
        with pytest.raises(JobFailedError if is_damaged else type(error)), damage_forgotten(tmp_path):
            raise error


@pytest.mark.parametrize("error", [InputError("no such seed"), OSError(errno.ENOSPC, "No space left on device")])
def test_what_a_person_must_mend_passes_as_it_is(tmp_path: Path, error: Exception) -> None:
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts/0.json").write_text("{")
    with pytest.raises(type(error)), damage_forgotten(tmp_path):
        raise error
    assert (tmp_path / "parts/0.json").exists()
