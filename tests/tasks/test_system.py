"""What a job's machine does, sampled beside it."""

import json
import time
from pathlib import Path

import psutil
import pytest

from tasks.system import STARTS, Sampler, sampler, visible_gpus, watched

NAMES = {
    "cpu_utilization_percentage", "system_memory_usage_megabytes", "system_memory_usage_percentage",
    "process_cpu_utilization_percentage", "process_memory_usage_megabytes", "disk_usage_percentage",
    "disk_usage_megabytes", "disk_available_megabytes", "network_receive_megabytes", "network_transmit_megabytes",
}  # fmt: skip


def rows(path: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_job_of_any_length_leaves_a_sample_and_a_second_start_goes_on_counting(tmp_path: Path) -> None:
    for _ in range(2):
        with watched(tmp_path, "811"):
            pass
    samples = rows(tmp_path / "system.jsonl")
    assert [row["step"] for row in samples] == [0, 1]
    assert set(samples[0]) >= {"step", "time", *NAMES}
    assert len(rows(tmp_path / STARTS / "811.jsonl")) == 2


def test_samples_come_at_their_time_and_tell_what_is_used(tmp_path: Path) -> None:
    path = tmp_path / "system.jsonl"
    with Sampler(path, every_s=0.1):
        until = time.monotonic() + 0.7
        while time.monotonic() < until:  # a busy core
            pass
    samples = rows(path)
    assert len(samples) >= 3
    assert max(row["process_cpu_utilization_percentage"] for row in samples) > 10
    rss = psutil.Process().memory_info().rss / 1e6
    assert samples[-1]["process_memory_usage_megabytes"] == pytest.approx(rss, rel=0.2)


def test_other_processes_of_a_machine_leave_it_to_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    with watched(tmp_path, "811"):
        pass
    assert not list(tmp_path.iterdir())


def test_another_machine_has_a_file_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_NODEID", "3")
    with watched(tmp_path, "811"):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["system-3.jsonl"]


def test_a_folder_that_cannot_be_written_ends_the_samples_and_not_the_job(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    done = False
    with watched(tmp_path / "file", "811"):
        done = True
    assert done
    assert "system metrics end here" in caplog.text


@pytest.mark.gpu
def test_a_gpu_is_sampled() -> None:
    assert visible_gpus()
    values = sampler()()
    assert 0 < values["gpu_0_memory_usage_percentage"] < 100
    assert 0 <= values["gpu_0_utilization_percentage"] <= 100
    assert values["gpu_0_power_usage_watts"] > 1
