"""What fetches gave, kept so that a killed run goes on: bodies one after the other in a file, and a log of outcomes.

A body is written before the line that tells of it, and what follows the last whole line or body is cut off at the next
start. Equal bodies are kept once. In memory: about 1 kB an outcome.
"""

import hashlib
import json
import os
from pathlib import Path
from typing import IO, NamedTuple

from dinov2.curation.download.answer import NoImageError
from dinov2.curation.sniff import SNIFF_BYTES, declared_size, sniff_mime


class Body(NamedTuple):
    """A stored image: `offset` in the file of bodies."""

    id: str
    mime: str
    offset: int
    length: int


class Failure(NamedTuple):
    """An image that can't be had; if `is_passing`, another round may get it."""

    reason: str
    is_passing: bool


class Moved(NamedTuple):
    """An image that a host of another part has, after so many redirects."""

    url: str
    num_redirects: int


Outcome = Body | Failure | Moved
KINDS: dict[str, type[Body] | type[Failure] | type[Moved]] = {kind.__name__: kind for kind in (Body, Failure, Moved)}


def judge(data: bytes, *, max_bytes: int, max_pixels: int) -> tuple[str, str]:
    """Id and kind of an image's bytes, of which one more than `max_bytes` are enough.

    Raises NoImageError with `too_large`, `not_an_image`, `malformed_image` or `too_many_pixels`. Nothing is decoded.
    """
    if len(data) > max_bytes:
        raise NoImageError("too_large")
    mime = sniff_mime(data[:SNIFF_BYTES])
    if mime is None:
        raise NoImageError("not_an_image")
    size = declared_size(data)
    if size is None:
        raise NoImageError("malformed_image")
    if size[0] * size[1] > max_pixels:
        raise NoImageError("too_many_pixels")
    return hashlib.sha256(data).hexdigest(), mime


class FetchLog:
    """Outcomes by the position of their record, in a folder of their own."""

    def __init__(self, folder: Path) -> None:
        self.outcomes: dict[int, Outcome] = {}
        self.bodies_path = folder / "bodies"
        self._offsets: dict[str, int] = {}
        folder.mkdir(parents=True, exist_ok=True)
        self._bodies = self.bodies_path.open("ab", buffering=0)
        self._log = (folder / "outcomes.jsonl").open("ab", buffering=0)
        self._restore(folder / "outcomes.jsonl")

    def add(self, position: int, outcome: Failure | Moved) -> None:
        """Note that a record has no image, or none here."""
        self._note(position, outcome)

    def add_body(self, position: int, data: bytes, *, max_bytes: int, max_pixels: int) -> None:
        """Keep a body, and note it; or why it is no image that we keep."""
        try:
            sample_id, mime = judge(data, max_bytes=max_bytes, max_pixels=max_pixels)
        except NoImageError as error:
            self._note(position, Failure(error.reason, is_passing=False))
            return
        offset = self._offsets.get(sample_id)
        if offset is None:
            offset = self._bodies.tell()
            _write_whole(self._bodies, data)
        self._note(position, Body(sample_id, mime, offset, len(data)))

    def close(self) -> None:
        """Let go of the files."""
        self._bodies.close()
        self._log.close()

    def __enter__(self) -> "FetchLog":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _note(self, position: int, outcome: Outcome) -> None:
        _write_whole(self._log, (json.dumps([position, type(outcome).__name__, *outcome]) + "\n").encode())
        self._remember(position, outcome)

    def _remember(self, position: int, outcome: Outcome) -> None:
        self.outcomes[position] = outcome
        if isinstance(outcome, Body):
            self._offsets[outcome.id] = outcome.offset

    def _restore(self, path: Path) -> None:
        """Read the log of a run that was killed; passing failures are forgotten, so that they are tried again."""
        num_bytes, num_whole, end = self._bodies.seek(0, os.SEEK_END), 0, 0
        with path.open("rb") as lines:
            for line in lines:
                try:
                    position, kind, *values = json.loads(line)
                    outcome = KINDS[kind](*values)
                except (ValueError, KeyError, TypeError):
                    break  # killed within that line
                body_end = outcome.offset + outcome.length if isinstance(outcome, Body) else 0
                if not line.endswith(b"\n") or body_end > num_bytes:
                    break  # or the machine stopped, and lost what was not on its disk yet
                num_whole += len(line)
                end = max(end, body_end)
                self._remember(position, outcome)
        self._log.truncate(num_whole)
        self._bodies.truncate(end)
        self._bodies.seek(end)
        passing = [at for at, outcome in self.outcomes.items() if isinstance(outcome, Failure) and outcome.is_passing]
        for position in passing:
            del self.outcomes[position]


def _write_whole(stream: IO[bytes], data: bytes) -> None:
    """Write all of `data`: an unbuffered write may take a part only, e.g. before the disk is full."""
    view = memoryview(data)
    while view:
        view = view[stream.write(view) :]
