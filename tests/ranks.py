"""Several processes with a gloo group, for tests of what they do together."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

HEADER = """
import sys
sys.path[:0] = {path!r}
import torch
from pathlib import Path
from dinov2.distributed import process_group, rank, world_size
work = Path({work!r})
with process_group(torch.device("cpu")):
"""


def start(code: str, num: int, work: Path) -> list[subprocess.Popen[str]]:
    """`num` processes that run `code` with `work`, `rank` and `world_size` at hand, inside a process group."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    here = Path(__file__).resolve()
    header = HEADER.format(path=[str(here.parents[1]), str(here.parent), str(here.parent / "train")], work=str(work))
    lines = header + "".join(f"    {line}\n" for line in code.strip().splitlines())
    environment = {**os.environ, "WORLD_SIZE": str(num), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return [
        subprocess.Popen(
            [sys.executable, "-c", lines], env={**environment, "RANK": str(number)}, text=True, stderr=subprocess.PIPE
        )
        for number in range(num)
    ]


def finish(processes: list[subprocess.Popen[str]], timeout_s: float = 60) -> list[tuple[int, str]]:
    """(exit code, what it said on stderr) of each; all are ended when the time is up."""
    try:
        return [(process.wait(timeout=timeout_s), process.communicate()[1]) for process in processes]
    finally:
        for process in processes:
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
                process.communicate()
