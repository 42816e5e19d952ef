"""Bytes of image files to upright RGB, whatever the format, and the evaluation's crop."""

import io
import struct
import subprocess
import tracemalloc
import zipfile
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from dinov2.data.decode import DecodeError, TooLargeError, decode_rgb
from dinov2.data.view import center_crop, normalise


def picture(height: int = 40, width: int = 60) -> Image.Image:
    rows, columns = np.mgrid[0:height, 0:width]
    pixels = np.stack([rows * 6 % 256, columns * 4 % 256, (rows + columns) * 2 % 256], axis=2).astype(np.uint8)
    return Image.fromarray(pixels)


def encode(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def test_decode_jpeg_is_close_to_pillow() -> None:
    data = encode(picture(), "JPEG", quality=95)
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)
    assert abs(decode_rgb(data).astype(int) - expected).mean() < 1


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_decode_turns_image_upright(orientation: int, kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(picture(), kind, exif=exif, **({"quality": 95} if kind == "JPEG" else {}))
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")).astype(int)
    pixels = decode_rgb(data)
    assert pixels.shape == expected.shape
    assert abs(pixels.astype(int) - expected).mean() < 2


def test_decode_png_keeps_pixels() -> None:
    assert np.array_equal(decode_rgb(encode(picture(), "PNG")), np.asarray(picture()))


def test_decode_16_bit_gray_keeps_its_range() -> None:
    deep = np.linspace(0, 65535, 32 * 32).reshape(32, 32).astype(np.uint16)
    pixels = decode_rgb(encode(Image.fromarray(deep), "PNG"))
    assert np.array_equal(pixels[..., 0], deep >> 8)


@pytest.mark.parametrize("value", [0.5, float("nan")])
def test_decode_refuses_floats(value: float) -> None:
    with pytest.raises(DecodeError, match="floats of unknown range"):
        decode_rgb(encode(Image.fromarray(np.full((8, 8), value, dtype=np.float32)), "TIFF"))


def test_decode_lays_transparency_on_white() -> None:
    clear = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    assert (decode_rgb(encode(clear, "PNG")) == 255).all()


def test_decode_palette_with_transparency() -> None:
    palette = Image.new("P", (8, 8), 1)
    palette.putpalette([0, 0, 0, 10, 200, 30])
    assert decode_rgb(encode(palette, "GIF"))[0, 0].tolist() == [10, 200, 30]
    assert decode_rgb(encode(palette, "PNG", transparency=1))[0, 0].tolist() == [255, 255, 255]


def test_decode_cmyk_jpeg() -> None:
    data = encode(Image.new("RGB", (16, 16), (200, 40, 90)).convert("CMYK"), "JPEG", quality=95)
    assert abs(decode_rgb(data)[8, 8].astype(int) - [200, 40, 90]).max() < 12


def test_decode_gray_jpeg_has_three_channels() -> None:
    assert decode_rgb(encode(picture().convert("L"), "JPEG")).shape == (40, 60, 3)


@pytest.mark.parametrize(
    "data",
    [b"", b"none", encode(picture(), "JPEG")[:300], encode(picture(), "PNG")[:80], b"\xff\xd8\xff" + b"\0" * 50],
)
def test_decode_damaged_bytes_raises(data: bytes) -> None:
    with pytest.raises(DecodeError):
        decode_rgb(data)


@pytest.mark.parametrize(("height", "width"), [(300, 200), (200, 300), (17, 400), (224, 224)])
def test_center_crop_has_asked_size(height: int, width: int) -> None:
    assert center_crop(np.zeros((height, width, 3), dtype=np.uint8), 112).shape == (3, 112, 112)


def test_center_crop_takes_the_middle() -> None:
    image = np.zeros((256, 512, 3), dtype=np.uint8)
    image[:, 256:] = 255
    crop = center_crop(image, 224)
    assert crop[:, :, :100].max() == 0
    assert crop[:, :, 124:].min() == 255


def test_normalise_gives_imagenet_statistics() -> None:
    images = torch.full((1, 3, 2, 2), 255, dtype=torch.uint8)
    expected = torch.tensor([(1 - 0.485) / 0.229, (1 - 0.456) / 0.224, (1 - 0.406) / 0.225])
    torch.testing.assert_close(normalise(images)[0, :, 0, 0], expected)


RED, BLUE = (230, 20, 10), (10, 20, 230)
KINDS = {"JPEG": {"quality": 95}, "PNG": {}, "GIF": {}, "WEBP": {"lossless": True}, "AVIF": {"quality": 95},
         "BMP": {}, "TIFF": {}}  # fmt: skip


def is_all(pixels: np.ndarray, colour: tuple[int, int, int], tolerance: int = 4) -> bool:
    return bool((np.abs(pixels.astype(int) - colour) <= tolerance).all())


@pytest.mark.parametrize("kind", KINDS)
def test_decode_every_format(kind: str) -> None:
    assert is_all(decode_rgb(encode(Image.new("RGB", (20, 12), RED), kind, **KINDS[kind])), RED)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "AVIF"])
def test_decode_takes_the_first_frame_of_an_animation(kind: str) -> None:
    frames = [Image.new("RGB", (20, 12), colour) for colour in (RED, BLUE, BLUE)]
    options = {"duration": 50, **KINDS[kind]}
    data = encode(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    with Image.open(io.BytesIO(data)) as image:
        assert getattr(image, "n_frames", 1) > 1
    assert is_all(decode_rgb(data), RED)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
@pytest.mark.parametrize("kind", ["PNG", "WEBP", "AVIF"])
def test_decode_lays_half_transparent_pixels_half_on_white(mode: str, kind: str) -> None:
    dark = Image.new(mode, (16, 16), (100, 100, 100, 128) if mode == "RGBA" else (100, 128))
    if mode == "LA" and kind != "PNG":
        dark = dark.convert("RGBA")
    assert is_all(decode_rgb(encode(dark, kind, **KINDS[kind])), (177, 177, 177))


def test_decode_16_bit_colours_keep_their_upper_byte() -> None:
    rows = b"".join(b"\0" + b"\xe6\xff\x14\x00\x0a\x80" * 4 for _ in range(3))
    assert is_all(decode_rgb(png(4, 3, 16, rows)), (0xE6, 0x14, 0x0A), tolerance=0)


def png(width: int, height: int, bits: int, rows: bytes) -> bytes:
    """A PNG in RGB of any claimed size."""
    header = struct.pack(">IIBBBBB", width, height, bits, 2, 0, 0, 0)
    chunks = (b"IHDR" + header, b"IDAT" + zlib.compress(rows), b"IEND")
    framed = (struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) for chunk in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(framed)


def test_decode_one_pixel() -> None:
    for kind, options in KINDS.items():
        assert is_all(decode_rgb(encode(Image.new("RGB", (1, 1), RED), kind, **options)), RED, tolerance=8)


def test_decode_long_images_up_to_what_a_jpeg_can_have() -> None:
    assert decode_rgb(encode(Image.new("RGB", (30_000, 2), RED), "JPEG")).shape == (2, 30_000, 3)
    with pytest.raises(TooLargeError, match="65501x1 "):
        decode_rgb(encode(Image.new("RGB", (65_501, 1), RED), "PNG"))


@pytest.mark.parametrize("side", [9_000, 12_000, 30_000, 2**31 - 1])
def test_decode_refuses_bombs_by_their_header(side: int) -> None:
    """A few bytes that claim gigabytes; between 9,460 and 13,378 pixels Pillow itself only warns."""
    tracemalloc.start()
    try:
        with pytest.raises(TooLargeError):
            decode_rgb(png(side, side, 8, b""))
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()


def test_decode_refuses_a_jpeg_bomb() -> None:
    small = encode(picture(), "JPEG")
    start = small.index(b"\xff\xc0") + 5
    with pytest.raises(TooLargeError):
        decode_rgb(small[:start] + struct.pack(">HH", 30_000, 30_000) + small[start + 4 :])


def test_decode_refuses_text_that_unpacks_without_end() -> None:
    chunk = b"zTXtcomment\0\0" + zlib.compress(b" " * 100_000_000)
    framed = struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
    whole = encode(picture(), "PNG")
    with pytest.raises(DecodeError):
        decode_rgb(whole[:33] + framed + whole[33:])


@pytest.mark.parametrize("kind", KINDS)
def test_decode_truncated_bytes_raises(kind: str) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    data = encode(noise, kind, **KINDS[kind])
    with pytest.raises(DecodeError):
        decode_rgb(data[: len(data) * 2 // 3])


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP"])
def test_decode_polyglot_is_the_image_at_its_start(kind: str) -> None:
    data = encode(Image.new("RGB", (20, 12), RED), kind, **KINDS[kind])
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("script.js", "alert(1)")
    for tail in (archive.getvalue(), b"<script>alert(1)</script>", encode(picture(), "PNG")):
        assert is_all(decode_rgb(data + tail), RED)


@pytest.mark.parametrize(
    "data",
    [
        b"<html>" + encode(picture(), "JPEG"),
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(x) run\n%%EOF",
        b"%PDF-1.4\n" + encode(picture(), "PNG"),
        b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>",
        b"\x89PNG\r\n\x1a\n" + encode(picture(), "JPEG"),
        b"\xff\xd8\xff" + encode(picture(), "PNG"),
    ],
    ids=["html", "postscript", "pdf", "svg", "png then jpeg", "jpeg then png"],
)
def test_decode_refuses_what_is_no_plain_image(data: bytes) -> None:
    with pytest.raises(DecodeError):
        decode_rgb(data)


def test_decode_starts_no_program(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow would hand PostScript to Ghostscript."""
    started = []

    def refuse(*args: object, **kwargs: object) -> None:
        started.append(args)
        raise OSError(args)

    monkeypatch.setattr(subprocess, "Popen", refuse)
    with pytest.raises(DecodeError):
        decode_rgb(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n%%EndProlog\nshowpage\n%%EOF\n")
    assert started == []
