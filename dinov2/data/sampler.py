"""Which sample is the n-th of the run: a computed permutation of each pass, so that any step can be reached at once.

The order costs no memory and no start-up, whatever the number of images, and depends on (seed, position) alone: not on
workers, processes or restarts. A source gives the bytes of its i-th image.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from dinov2.params import InputError
from dinov2.shards import ShardReader

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"}
NUM_ROUNDS = 6
MASK_64 = 2**64 - 1


def sample_index(seed: int, position: int, length: int) -> int:
    """The sample at `position` (from 0) of an endless sequence that visits all `length` samples in every pass."""
    number, place = divmod(position, length)
    return permute(place, length, _mix(_mix(seed) ^ number))


def permute(place: int, length: int, key: int) -> int:
    """Where a keyed permutation of range(length) sends `place`.

    A Feistel network permutes the next larger square of a power of two; what falls outside the range is sent on until
    it falls inside, which keeps it a permutation (cycle walking) and takes less than four tries on average.
    """
    half_bits = max(1, ((length - 1).bit_length() + 1) // 2)
    half_mask = (1 << half_bits) - 1
    while True:
        left, right = place >> half_bits, place & half_mask
        for number in range(NUM_ROUNDS):
            left, right = right, left ^ (_mix(right ^ (key + number * 0x9E3779B97F4A7C15)) & half_mask)
        place = left << half_bits | right
        if place < length:
            return place


def _mix(value: int) -> int:
    """A 64-bit number that looks unrelated to `value` (the finaliser of SplitMix64)."""
    value = (value + 0x9E3779B97F4A7C15) & MASK_64
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & MASK_64
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & MASK_64
    return value ^ (value >> 31)


@runtime_checkable  # shapes and types are checked when tests run
class Source(Protocol):
    """Images by number. `read` may be called by several threads at once."""

    def __len__(self) -> int:
        """How many images there are."""
        ...

    def read(self, i: int) -> bytes:
        """Bytes of the i-th image file; raises OSError where they can't be had."""
        ...

    def id(self, i: int) -> str:
        """Its name: the sha256 in a manifest, the path in a folder."""
        ...

    def label(self, i: int) -> str | None:
        """Its class, if known."""
        ...


class FolderSource:
    """Images in folders named by their label, `path/<label>/*`, in the order of their paths; loose images have none."""

    def __init__(self, path: Path) -> None:
        """Raises InputError if there is no image below `path`."""
        self.path = path
        files = (item for item in path.rglob("*") if item.suffix.lower() in SUFFIXES and item.is_file())
        self.files = sorted(item.relative_to(path).as_posix() for item in files)
        if not self.files:
            kinds = ", ".join(sorted(SUFFIXES))
            raise InputError(f"{path} holds no images ({kinds}); put them there, a folder a label")

    def __len__(self) -> int:
        return len(self.files)

    def read(self, i: int) -> bytes:
        return (self.path / self.files[i]).read_bytes()

    def id(self, i: int) -> str:
        return self.files[i]

    def label(self, i: int) -> str | None:
        folder, separator, _ = self.files[i].partition("/")
        return folder if separator else None


class ShardSource:
    """Images of a manifest's rows, in the rows' order."""

    def __init__(self, rows: Sequence[Mapping[str, Any]], reader: ShardReader) -> None:
        """Raises InputError if there are no rows."""
        if not rows:
            raise InputError("the manifest has no rows, so there is nothing to train on; look at the stage before")
        self.rows = rows
        self.reader = reader

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, i: int) -> bytes:
        return self.reader.read(self.rows[i])

    def id(self, i: int) -> str:
        return self.rows[i]["id"]

    def label(self, i: int) -> str | None:
        return self.rows[i]["label"]
