"""What a growing log file says, passed on line by line."""

from collections.abc import Callable
from pathlib import Path


class LogTail:
    """Passes on what a growing log file says, line by line; submitit's own lines are left in the file."""

    def __init__(self, path: Path, show: Callable[[str], None]) -> None:
        self.path = path
        self._show = show
        self._position = 0

    def read(self) -> None:
        """Show the whole lines that came since the last call."""
        if not self.path.exists() or self.path.stat().st_size <= self._position:
            return
        with self.path.open("rb") as stream:
            stream.seek(self._position)
            data = stream.read()
        whole = data[: data.rfind(b"\n") + 1]
        self._position += len(whole)
        for line in whole.decode(errors="replace").splitlines():
            if not line.startswith("submitit "):
                self._show(line)

    def last(self, num_lines: int = 30) -> str:
        """The last lines of the file."""
        if not self.path.exists():
            return ""
        return "\n".join(self.path.read_text(errors="replace").splitlines()[-num_lines:])
