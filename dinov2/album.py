"""Thumbnails of images by id, wherever a stage put them: as JPEG data URIs, for pages that need no other file."""

import base64
import io
from collections.abc import Collection, Mapping
from pathlib import Path
from types import TracebackType

from PIL import Image

from dinov2.data.decode import DecodeError, decode_rgb
from dinov2.lookup import Row, rows_with
from dinov2.params import InputError
from dinov2.shards import ShardReader
from dinov2.store import Store

JPEG_QUALITY = 80
TABLES = (
    ("filter", "manifest"), ("download", "manifest"), ("embed", "pool"), ("embed", "seeds"), ("embed", "evaluation"),
    ("retrieve", "manifest"),
)  # fmt: skip


class Album:
    """Finds images in the stages' outputs, or in `folders` (of evaluation images) that hold them as files.

    with Album(store, {"filter": Path("data/filter"), ...}, 96) as album:
        album.find({"1f3a...", "98bc..."})      # one pass over the tables for all of them
        album.thumbnail("1f3a...")              # None where the image is in no shard or can't be read
    """

    def __init__(
        self,
        store: Store,
        outputs: Mapping[str, Path],
        size_px: int,
        folders: tuple[Path, ...] = (),
        *,
        needs_blobs: bool = False,
    ) -> None:
        """`needs_blobs`: a shard that is not in the store is a mistake (InputError), not an image that is not shown."""
        self._reader = ShardReader(store)
        self._outputs = outputs
        self._size_px = size_px
        self._folders = folders
        self._needs_blobs = needs_blobs
        self._rows: dict[str, Row] = {}
        self._made: dict[str, str | None] = {}

    def find(self, images: Collection[str]) -> None:
        """Look up where these images are."""
        for stage, table in TABLES:
            if stage not in self._outputs:
                continue
            wanted = {image for image in images if self._rows.get(image, {}).get("shard") is None}
            for row in rows_with(self._outputs[stage] / f"{table}.parquet", "id", wanted):
                self._rows.setdefault(row["id"], row)
                if row["shard"] is not None:
                    self._rows[row["id"]] = row

    def thumbnail(self, image: str | None) -> str | None:
        """A data URI, made once an image."""
        if image is None:
            return None
        if image not in self._made:
            self._made[image] = self._thumbnail(image)
        return self._made[image]

    def is_file(self, image: str | None) -> bool:
        """Whether it is one of those that are in no shard: an evaluation image stays in its folder."""
        return image in self._rows and self._rows[image]["shard"] is None

    def _thumbnail(self, image: str) -> str | None:
        try:
            picture = Image.fromarray(decode_rgb(self._bytes(image)))
        except (DecodeError, OSError):  # shown as absent: a page for people is no place to stop
            return None
        except InputError:
            if self._needs_blobs:
                raise
            return None
        picture.thumbnail((self._size_px, self._size_px), Image.Resampling.LANCZOS)
        return data_uri(picture)

    def _bytes(self, image: str) -> bytes:
        row = self._rows.get(image)
        if row is None:
            raise OSError(f"{image} is in no table")
        if row["shard"] is not None:
            return self._reader.read(row)
        files = [path for folder in self._folders if (path := folder / (row.get("path") or "")).is_file()]
        if not files:
            raise OSError(f"{image} is in no shard and no folder")
        return files[0].read_bytes()

    def __enter__(self) -> "Album":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._reader.close()


def data_uri(picture: Image.Image) -> str:
    """The picture as a JPEG data URI."""
    stream = io.BytesIO()
    picture.convert("RGB").save(stream, "JPEG", quality=JPEG_QUALITY, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode()
