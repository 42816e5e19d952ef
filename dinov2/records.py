"""What flows between stages: the schemas of the tables, and the record that lies beside every output.

A *manifest* has one row a sample; `removed.parquet` has one row for everything a stage dropped, with its reason and,
where another image was the cause, that witness. `record.json` says what made an output and how many went in, stayed and
were dropped; it holds nothing that differs between two runs of the same params and inputs.
"""

import errno
import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict

from dinov2.params import InputError

DISK_FULL = (errno.ENOSPC, errno.EDQUOT)

IMAGE_RECORDS = pa.schema(
    [
        ("url", pa.string()),  # absolute URL of the image, in its one spelling; or a whole data: URI, in base64
        ("page_url", pa.string()),
        ("alt", pa.string()),  # empty where the page gave none
        ("warc", pa.string()),  # WARC file that holds the response, relative to the crawl; null: fetch by HTTP
        ("warc_offset", pa.int64()),  # bytes; null where warc is
    ]
)

MANIFEST = pa.schema(
    [
        ("id", pa.string()),  # sha256 of the image's bytes, hexadecimal
        ("shard", pa.string()),  # name of the blob in the store that holds it
        ("offset", pa.int64()),  # bytes from the start of the shard
        ("length", pa.int64()),  # bytes
        ("width", pa.int32()),  # pixels
        ("height", pa.int32()),  # pixels
        ("mime", pa.string()),
        ("url", pa.string()),
        ("page_url", pa.string()),
        ("label", pa.string()),  # null where unknown
        ("source_id", pa.string()),  # the image that this one was made from, by blurring faces; else null
    ]
)

LOOKS = pa.schema(
    [
        ("id", pa.string()),  # as downloaded, before any blurring
        ("grey_std", pa.float32()),  # 0 to 127.5; this and all below null where it was not measured
        ("dominant_share", pa.float32()),  # of the most frequent colour
        ("nsfw_score", pa.float32()),  # 0 to 1
        ("num_faces", pa.int32()),
    ]
)

CURATED = pa.schema(
    [
        *MANIFEST,
        ("origin", pa.string()),  # seed | sample | cluster | balanced: how it was chosen
        ("seed_id", pa.string()),  # the seed image that chose it, its own id for a seed; null where none did
        ("source", pa.string()),  # label of that seed, by which quotas and the mixture's weights go; null: none
        ("cosine", pa.float32()),  # to that seed, or to its cluster's centroid where none chose it
        ("cluster", pa.int32()),  # of the pool; null for a seed that chose nothing
    ]
)

REMOVED = pa.schema(
    [
        ("id", pa.string()),  # null where nothing was downloaded
        ("url", pa.string()),
        ("reason", pa.string()),
        ("witness_id", pa.string()),  # the image that caused the removal; null where none did
        ("cosine", pa.float32()),  # similarity to the witness; null where none was computed
    ]
)


class Summary(BaseModel):
    """What a stage says of its work: counts that add up (`num_in` = `num_kept` + all `dropped`) and its metrics."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    num_in: int
    num_kept: int
    dropped: dict[str, int]
    metrics: dict[str, float]


def write_table(path: Path, schema: pa.Schema, rows: Iterable[Mapping[str, Any]]) -> int:
    """Write `rows` as a Parquet file of exactly `schema`, by a temporary name; returns their number."""
    table = pa.Table.from_pylist([dict(row) for row in rows], schema=schema)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    pq.write_table(table, temporary)
    temporary.replace(path)
    return table.num_rows


def read_table(path: Path, schema: pa.Schema) -> list[dict[str, Any]]:
    """Rows of a Parquet file that must hold at least the columns of `schema`, with those types.

    Raises InputError if the file is absent, cut short, or of another schema.
    """
    with opening(path):
        table = pq.read_table(path)
    check_columns(path, table.schema, schema)
    return table.select(schema.names).to_pylist()


class UnreadableError(InputError):
    """A table that is cut short, or is none."""


@contextmanager
def opening(path: Path) -> Iterator[None]:
    """Raises InputError for a table that is absent, UnreadableError for one that is cut short, in pyarrow's place."""
    try:
        yield
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist; run the stage that makes it (dvc repro)") from error
    except (pa.ArrowInvalid, OSError) as error:
        raise UnreadableError(f"{path} is not a readable Parquet file ({error}); make it again (dvc repro)") from error


def check_columns(path: Path, found: pa.Schema, schema: pa.Schema) -> None:
    """Raise InputError if the columns `found` in a file lack one of `schema`, or have it with another type."""
    for field in schema:
        position = found.get_field_index(field.name)
        if position < 0 or found.field(position).type != field.type:
            raise InputError(f"{path} has no column '{field.name}' of type {field.type}; make it again (dvc repro)")


def count_reasons(rows: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """Number of removed rows a reason, in alphabetical order."""
    return dict(sorted(Counter(row["reason"] for row in rows).items()))


def write_json(path: Path, value: object) -> None:
    """Write JSON with sorted keys and a final newline: by a temporary name, renamed when it is on the disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w") as stream:
        stream.write(json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n")
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(path)


def flush_files(folder: Path) -> None:
    """Make all files below a folder survive a power cut."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as stream:
                os.fsync(stream.fileno())


def read_json(path: Path) -> Any:
    """What `write_json` wrote; None if there is no such file, or one that a power cut damaged, which is put aside."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except ValueError:  # JSON's and UTF-8's errors are of this kind
        path.replace(path.with_name(f"{path.name}.damaged"))
        return None


def sha256_file(path: Path) -> str:
    """Hexadecimal sha256 of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
