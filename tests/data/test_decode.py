"""Bytes of image files to upright RGB, whatever the format, and the evaluation's crop."""

import io

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from dinov2.data.decode import DecodeError, decode_rgb
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
