"""What a job looks at before it begins, and after it failed."""

import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from dinov2.params import InputError, Params
from dinov2.records import REMOVED, Summary, read_table, write_table
from dinov2.store import StoreParams
from tasks.call import StageCall, StageJob, check_gpus
from tasks.fan_out import Phase
from tasks.follow import JobFailedError


@pytest.mark.parametrize("given", ["0", "0,1", "GPU-8932f937-d72c-4106-c12f-20bd9faed9f6"])
def test_more_gpus_than_the_machine_has_are_refused(monkeypatch: pytest.MonkeyPatch, given: str) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
    check_gpus()  # on the CPU any number of processes may take part
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for num_gpus in (2, 1):
        monkeypatch.setattr(torch.cuda, "device_count", lambda num=num_gpus: num)
        if len(given.split(",")) <= num_gpus:
            check_gpus()
            continue
        with pytest.raises(InputError, match="launch gives the job 2 GPUs, but its machine has 1; lower gpus_per_node"):
            check_gpus()


class Parted(ModuleType):
    """A stage whose one part is a table that `run` reads, and that reads its input."""

    def __init__(self) -> None:
        super().__init__("tasks.parted")
        self.PHASES = (Phase("write", lambda: 1, self.write),)

    def write(self, part: int, given: Path, work: Path) -> None:
        """The part."""
        assert part == 0
        write_table(work / "parts/0.parquet", REMOVED, read_table(given, REMOVED))

    def run(self, work: Path) -> Summary:
        """Read it."""
        num = len(read_table(work / "parts/0.parquet", REMOVED))
        return Summary(num_in=num, num_kept=num, dropped={}, metrics={})


@pytest.fixture
def parted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StageJob:
    """A job of that stage, in a workspace of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "tasks.parted", Parted())
    monkeypatch.setattr("tasks.call.export_rank", lambda: None)  # there is no job around it
    monkeypatch.setattr("tasks.call.job_number", lambda: "1")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")
    write_table(tmp_path / "given.parquet", REMOVED, [])
    call = StageCall("parted", {"given": "given.parquet"}, {}, "out", Params(), 1, {})
    return StageJob(call, StoreParams(url="store", cache="cache", remote=None), num_threads=1)


def cut(path: Path) -> None:
    """Leave half of a file."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_work_that_was_damaged_is_made_again_at_the_next_start(parted: StageJob) -> None:
    assert parted().summary is not None
    cut(parted.call.work / "parts/0.parquet")
    with pytest.raises(JobFailedError, match="work of this stage was damaged; start it again"):
        parted()
    assert parted().summary is not None


def test_outputs_are_on_the_disk_before_the_job_says_that_it_is_done(
    parted: StageJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed: list[Path] = []
    monkeypatch.setattr("tasks.call.flush_files", flushed.append)
    parted()
    assert flushed == [parted.call.work / "out"]


def test_a_damaged_input_is_a_mistake_and_is_left_alone(parted: StageJob) -> None:
    cut(Path("given.parquet"))
    mistake = parted().mistake
    assert mistake is not None
    assert mistake.startswith("given.parquet is not a readable Parquet file")
    assert Path("given.parquet").exists()
