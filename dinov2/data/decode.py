"""From the bytes of an image file to upright RGB pixels. Imports no torch.

JPEG goes through simplejpeg (twice Pillow's speed, and it frees the interpreter lock, so threads decode side by side);
everything else, and every JPEG that simplejpeg refuses, goes through Pillow, with those of its plugins only that decode
in this process and from these bytes (its EPS plugin would start Ghostscript). Bytes after an image's end are not looked
at; what a file is called or claims to be otherwise does not matter.
"""

import io

import numpy as np
import simplejpeg
from jaxtyping import UInt8
from numpy.typing import NDArray
from PIL import Image, ImageOps

from dinov2.shards import MAX_PIXELS

MAX_SIDE_PX = 65_500  # libjpeg's, so that whatever is read can also be written
FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "AVIF", "BMP", "TIFF", "PPM", "JPEG2000", "MPO")
ORIENTATION_TAG = 0x0112
UPRIGHT = {  # EXIF orientation -> how stored pixels become upright ones
    2: lambda pixels: pixels[:, ::-1],
    3: lambda pixels: pixels[::-1, ::-1],
    4: lambda pixels: pixels[::-1],
    5: lambda pixels: pixels.transpose(1, 0, 2),
    6: lambda pixels: pixels.transpose(1, 0, 2)[:, ::-1],
    7: lambda pixels: pixels[::-1, ::-1].transpose(1, 0, 2),
    8: lambda pixels: pixels.transpose(1, 0, 2)[::-1],
}


class DecodeError(Exception):
    """The bytes are no image that can be read; says why."""


class TooLargeError(DecodeError):
    """The image has more than MAX_PIXELS, or a side above MAX_SIDE_PX: its header says so, nothing is decoded."""


def decode_rgb(data: bytes) -> UInt8[np.ndarray, "h w 3"]:
    """Upright RGB pixels of an image file.

    Of an animation the first frame. Transparency is laid on white, 16 bits become 8 (the upper ones), CMYK becomes RGB
    without regard to its colour profile.
    Raises TooLargeError where an image is too large to be decoded, else DecodeError if the bytes are no whole image.
    """
    if data[:3] == b"\xff\xd8\xff":
        pixels = _decode_jpeg(data)
        if pixels is not None:
            return pixels
    return _decode_any(data)


def _decode_jpeg(data: bytes) -> NDArray[np.uint8] | None:
    """RGB pixels by simplejpeg; None where Pillow should try."""
    try:
        height, width, colorspace, _ = simplejpeg.decode_jpeg_header(data)
        if int(height) * int(width) > MAX_PIXELS or colorspace not in ("YCbCr", "RGB", "Gray", "GRAY"):
            return None
        pixels = simplejpeg.decode_jpeg(data, colorspace="RGB")
    except ValueError:
        return None
    if b"Exif\0\0" not in data:
        return pixels
    try:
        with Image.open(io.BytesIO(data), formats=["JPEG", "MPO"]) as image:
            orientation = image.getexif().get(ORIENTATION_TAG, 1)
    except Exception:  # Pillow raises of many kinds on damaged EXIF; the pixels are whole
        return pixels
    turn = UPRIGHT.get(orientation)
    return pixels if turn is None else np.ascontiguousarray(turn(pixels))


def _decode_any(data: bytes) -> NDArray[np.uint8]:
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            _check_size(image)
            image.load()
            return np.array(_to_rgb(ImageOps.exif_transpose(image)))
    except DecodeError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise TooLargeError(str(error)) from error
    except Exception as error:  # Pillow's plugins raise of every kind on damaged files
        raise DecodeError(f"{type(error).__name__}: {error}") from error


def _check_size(image: Image.Image) -> None:
    if image.width * image.height > MAX_PIXELS or max(image.size) > MAX_SIDE_PX:
        limits = f"{MAX_PIXELS} pixels and sides of {MAX_SIDE_PX}"
        raise TooLargeError(f"{image.width}x{image.height} pixels are more than the limits, {limits}")


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise DecodeError("pixels are 32-bit floats of unknown range")
    if image.mode.startswith("I"):
        deep = np.asarray(image).astype(np.int64)
        return Image.fromarray((np.clip(deep, 0, 65535) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        layer = image.convert("RGBA")
        background = Image.new("RGBA", layer.size, (255, 255, 255, 255))
        return Image.alpha_composite(background, layer).convert("RGB")
    return image.convert("RGB")
