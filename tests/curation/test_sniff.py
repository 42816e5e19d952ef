"""Kinds and declared sizes, read from first bytes: right on whole files of each kind, calm on damaged ones."""

import io
import random
import struct
import time
from typing import Any

import numpy as np
import pytest
from misbehaving_server import GIF, SCRIPT, png
from PIL import Image

from dinov2.curation.sniff import SNIFF_BYTES, declared_size, sniff_mime

PHOTO = Image.fromarray(np.random.default_rng(0).integers(0, 255, (37, 53, 3), dtype=np.uint8))
EXIF = Image.Exif()
EXIF[0x0112] = 6  # to be turned; the declared size is that of the stored pixels
KINDS: dict[str, tuple[str, Image.Image, dict[str, Any]]] = {
    "jpeg": ("image/jpeg", PHOTO, {"format": "JPEG"}),
    "progressive": ("image/jpeg", PHOTO, {"format": "JPEG", "progressive": True}),
    "turned": ("image/jpeg", PHOTO, {"format": "JPEG", "exif": EXIF}),
    "cmyk": ("image/jpeg", PHOTO.convert("CMYK"), {"format": "JPEG"}),
    "png": ("image/png", PHOTO, {"format": "PNG"}),
    "16 bits": ("image/png", Image.new("I;16", PHOTO.size), {"format": "PNG"}),
    "palette": ("image/png", PHOTO.convert("P"), {"format": "PNG", "transparency": 3}),
    "apng": ("image/png", PHOTO, {"format": "PNG", "save_all": True, "append_images": [PHOTO.rotate(180)]}),
    "gif": ("image/gif", PHOTO, {"format": "GIF"}),
    "animated gif": ("image/gif", PHOTO, {"format": "GIF", "save_all": True, "append_images": [PHOTO.rotate(180)]}),
    "webp": ("image/webp", PHOTO, {"format": "WEBP"}),
    "lossless webp": ("image/webp", PHOTO, {"format": "WEBP", "lossless": True}),
    "webp with exif": ("image/webp", PHOTO, {"format": "WEBP", "exif": EXIF}),
    "animated webp": ("image/webp", PHOTO, {"format": "WEBP", "save_all": True, "append_images": [PHOTO.rotate(180)]}),
    "avif": ("image/avif", PHOTO, {"format": "AVIF"}),
    "animated avif": ("image/avif", PHOTO, {"format": "AVIF", "save_all": True, "append_images": [PHOTO.rotate(180)]}),
}


def encode(kind: str) -> bytes:
    file = io.BytesIO()
    _, image, options = KINDS[kind]
    image.save(file, **options)
    return file.getvalue()


@pytest.mark.parametrize("kind", KINDS)
def test_kind_and_size_are_read_without_decoding(kind: str) -> None:
    data = encode(kind)
    assert sniff_mime(data[:SNIFF_BYTES]) == KINDS[kind][0]
    assert declared_size(data) == PHOTO.size


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_files_raise_nothing(kind: str) -> None:
    data, rng = encode(kind), random.Random(kind)
    for length in range(0, min(len(data), 600)):
        declared_size(data[:length])
    for _ in range(500):
        damaged = bytearray(data)
        for _ in range(rng.randrange(1, 4)):
            damaged[rng.randrange(min(600, len(data)))] = rng.randrange(256)
        width, height = declared_size(bytes(damaged)) or (1, 1)
        assert width > 0
        assert height > 0


def test_what_is_no_image_has_no_kind() -> None:
    heic = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"
    for data in (b"", b"\xff\xd8", b"<html>", b"RIFF\0\0\0\0WAVEfmt ", heic, b"BM" + bytes(60)):
        assert sniff_mime(data) is None
        assert declared_size(data) is None
    assert sniff_mime(b"\0\0\0\x1cftypmif1\0\0\0\0mif1avif" + bytes(40)) == "image/avif"


def test_what_only_begins_like_an_image_has_no_size() -> None:
    assert declared_size(b"GIF89a<html>" + SCRIPT * 9) is None
    assert declared_size(b"\xff\xd8\xff\xe0\0\x10JFIF\0" + b"junk" * 99) is None
    assert declared_size(b"\xff\xd8\xff\xd9" + bytes(99)) is None
    assert declared_size(b"\x89PNG\r\n\x1a\n" + SCRIPT * 9) is None
    assert declared_size(png("none", 0, 5)) is None
    assert declared_size(b"RIFF\0\0\0\0WEBPVP8 " + SCRIPT * 9) is None
    assert declared_size(GIF + SCRIPT) == (1, 1)


def test_frame_larger_than_its_screen_counts() -> None:
    frame = struct.pack("<BHHHHB", 0x2C, 10, 0, 50_000, 40_000, 0)
    assert declared_size(b"GIF89a\1\0\1\0\0\0\0" + b"!\xf9\4\0\0\0\0\0" + frame) == (50_010, 40_000)


def test_size_behind_large_metadata_is_found() -> None:
    data = encode("jpeg")
    segments = b"".join(b"\xff\xe1" + struct.pack(">H", 65_535) + bytes(65_533) for _ in range(20))
    assert declared_size(data[:2] + segments + data[2:]) == PHOTO.size


def test_files_made_to_be_walked_for_long_are_not() -> None:
    many = 2_000_000
    started = time.perf_counter()
    assert declared_size(b"\xff\xd8" + b"\xff" * many) is None
    assert declared_size(b"\xff\xd8\xff\xe0\0\2" + b"\xff\xe0\0\2" * many) is None
    assert declared_size(b"GIF89a\1\0\1\0\0\0\0!\xfe" + b"\1x" * many) is None
    assert declared_size(b"\0\0\0\x10ftypavif\0\0\0\0" + b"\0\0\0\x08free" * many) is None
    assert time.perf_counter() - started < 2
