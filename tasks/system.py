"""What a job does to its machine: CPU, memory, disk, network and GPUs, sampled by a thread of the job into a file.

`work/system.jsonl` gets a line every SAMPLE_EVERY_S seconds and one at the end, under the names that MLflow's own
sampler gives (their tab of a run knows them); shipped like curves. GPUs are asked through NVIDIA's driver library,
which is there wherever CUDA is, so this needs no package. What a sample costs: benchmarks/results/logging_cost.md.
"""

import ctypes
import json
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil

SAMPLE_EVERY_S = 10.0
SYSTEM = "system"
"""Of files `system.jsonl`; of a job on several machines `system-<n>.jsonl`, too."""
STARTS = "starts"
"""Folder with a file a job, a line a start: a job that was queued again has several."""
log = logging.getLogger(__name__)


@contextmanager
def watched(work: Path, job: str) -> Iterator[None]:
    """Note that `job` has started and sample its machine until it ends. Never raises: a full disk is told elsewhere."""
    if os.environ.get("LOCAL_RANK", "0") != "0":  # one process a machine is enough
        yield
        return
    node = int(os.environ.get("SLURM_NODEID", "0"))
    if node == 0:
        _note_start(work / STARTS / f"{job}.jsonl")
    with Sampler(work / (f"{SYSTEM}-{node}.jsonl" if node else f"{SYSTEM}.jsonl"), every_s=SAMPLE_EVERY_S):
        yield


def _note_start(path: Path) -> None:
    line = {"time": time.time(), "host": socket.gethostname(), "slurm": "SLURM_JOB_ID" in os.environ}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        append_line(path, line)
    except OSError as error:
        log.warning("%s can't be written (%s)", path, error.strerror)


def append_line(path: Path, line: dict[str, object]) -> None:
    """Add one line of JSON."""
    with path.open("a") as stream:
        stream.write(json.dumps(line) + "\n")


def read_lines(path: Path, start: int) -> tuple[list[dict[str, Any]], int]:
    """Rows from byte `start` on, and the byte that they end at; lines that a kill cut short are left out."""
    with path.open("rb") as stream:
        stream.seek(start)
        data = stream.read()
    whole = data[: data.rfind(b"\n") + 1]
    rows = []
    for line in whole.splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return rows, start + len(whole)


class Sampler:
    """A thread that samples from `__enter__` to `__exit__`."""

    def __init__(self, path: Path, *, every_s: float) -> None:
        self.path = path
        self.every_s = every_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="system metrics", daemon=True)

    def __enter__(self) -> "Sampler":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join(timeout=self.every_s)

    def _run(self) -> None:
        try:
            sample = sampler()
            step = _num_lines(self.path)
            is_last = False
            while not is_last:
                is_last = self._stop.wait(self.every_s)
                append_line(self.path, {"step": step, "time": time.time(), **sample()})
                step += 1
        except Exception as error:  # whatever a machine answers, the job goes on
            log.warning("system metrics end here: %s", error)


def _num_lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def sampler() -> Callable[[], dict[str, float]]:
    """A function that measures; use of the CPU is since the call before, traffic since now."""
    process = psutil.Process()
    psutil.cpu_percent()
    process.cpu_percent()
    network = psutil.net_io_counters()
    gpus = visible_gpus()

    def sample() -> dict[str, float]:
        memory, disk, traffic = psutil.virtual_memory(), psutil.disk_usage("."), psutil.net_io_counters()
        values = {
            "cpu_utilization_percentage": psutil.cpu_percent(),
            "system_memory_usage_megabytes": memory.used / 1e6,
            "system_memory_usage_percentage": memory.percent,
            "process_cpu_utilization_percentage": process.cpu_percent(),  # of one core
            "process_memory_usage_megabytes": process.memory_info().rss / 1e6,
            "disk_usage_percentage": disk.percent,
            "disk_usage_megabytes": disk.used / 1e6,
            "disk_available_megabytes": disk.free / 1e6,
            "network_receive_megabytes": (traffic.bytes_recv - network.bytes_recv) / 1e6,
            "network_transmit_megabytes": (traffic.bytes_sent - network.bytes_sent) / 1e6,
        }
        for number, gpu in enumerate(gpus):
            values |= {f"gpu_{number}_{name}": value for name, value in gpu.sample().items()}
        return values

    return sample


class _Memory(ctypes.Structure):
    _fields_ = [("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong)]


class _Utilization(ctypes.Structure):
    _fields_ = [("gpu", ctypes.c_uint), ("memory", ctypes.c_uint)]


class DriverGPU:
    """A GPU as NVIDIA's management library (NVML, part of the driver) sees it."""

    def __init__(self, library: ctypes.CDLL, handle: ctypes.c_void_p) -> None:
        self._library = library
        self._handle = handle

    def sample(self) -> dict[str, float]:
        """What the driver tells of it; what it does not know is left out."""
        values: dict[str, float] = {}
        memory, use, used_mw, allowed_mw = _Memory(), _Utilization(), ctypes.c_uint(), ctypes.c_uint()
        if self._ask("nvmlDeviceGetUtilizationRates", use):
            values["utilization_percentage"] = float(use.gpu)
        if self._ask("nvmlDeviceGetMemoryInfo", memory):
            values["memory_usage_megabytes"] = memory.used / 1e6
            values["memory_usage_percentage"] = 100 * memory.used / memory.total
        if self._ask("nvmlDeviceGetPowerUsage", used_mw):
            values["power_usage_watts"] = used_mw.value / 1000
            if self._ask("nvmlDeviceGetEnforcedPowerLimit", allowed_mw) and allowed_mw.value:
                values["power_usage_percentage"] = 100 * used_mw.value / allowed_mw.value
        return values

    def _ask(self, question: str, answer: ctypes.Structure | ctypes.c_uint) -> bool:
        return getattr(self._library, question)(self._handle, ctypes.byref(answer)) == 0


def visible_gpus() -> list[DriverGPU]:
    """GPUs that this job may use, in its order; none without NVIDIA's driver."""
    try:
        library = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return []
    count = ctypes.c_uint()
    if library.nvmlInit_v2() != 0 or library.nvmlDeviceGetCount_v2(ctypes.byref(count)) != 0:
        return []
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = [str(number) for number in range(count.value)] if visible is None else visible.split(",")
    return [gpu for name in names if name.strip() and (gpu := _gpu(library, name.strip())) is not None]


def _gpu(library: ctypes.CDLL, name: str) -> DriverGPU | None:
    """By its number, or by its name (GPU-4c1d...)."""
    handle = ctypes.c_void_p()
    if name.isdigit():
        answer = library.nvmlDeviceGetHandleByIndex_v2(ctypes.c_uint(int(name)), ctypes.byref(handle))
    else:
        answer = library.nvmlDeviceGetHandleByUUID(name.encode(), ctypes.byref(handle))
    return DriverGPU(library, handle) if answer == 0 else None
