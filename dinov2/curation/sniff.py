"""What an image file says of itself in its first bytes: its kind, and how many pixels decoding it would give.

Nothing is decoded, so that a decompression bomb costs what its header costs. What servers or names say is not read.
Animated files count with one frame: later stages decode the first.
"""

import struct

SNIFF_BYTES = 64  # enough to tell the kind
MAX_STEPS = 1 << 16  # over the segments, blocks or boxes of a file: one made of millions costs no more than this
_AVIF_BRANDS = (b"avif", b"avis")
_JPEG_STANDALONE = (0x01, *range(0xD0, 0xD8))  # markers without a segment
_JPEG_FRAMES = tuple(marker for marker in range(0xC0, 0xD0) if marker not in (0xC4, 0xC8, 0xCC))


def sniff_mime(head: bytes) -> str | None:
    """The kind of image that begins with the bytes `head` (64 are enough), or None if it is no kind that we keep."""
    if head.startswith(b"\xff\xd8\xff"):
        return "image/jpeg"
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return "image/png"
    if head.startswith((b"GIF87a", b"GIF89a")):
        return "image/gif"
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        return "image/webp"
    if head[4:8] == b"ftyp":
        brands = head[8 : min(int.from_bytes(head[:4], "big"), SNIFF_BYTES)]
        if any(brands[start : start + 4] in _AVIF_BRANDS for start in (0, *range(8, len(brands), 4))):
            return "image/avif"
    return None


def declared_size(data: bytes) -> tuple[int, int] | None:
    """Width and height in pixels that an image file declares; None if it is of no kind that we keep, or malformed."""
    readers = {
        "image/jpeg": _jpeg_size,
        "image/png": _png_size,
        "image/gif": _gif_size,
        "image/webp": _webp_size,
        "image/avif": _avif_size,
    }
    mime = sniff_mime(data[:SNIFF_BYTES])
    if mime is None:
        return None
    try:
        width, height = readers[mime](data)
    except (struct.error, IndexError, ValueError):  # cut short, or no such structure
        return None
    return (width, height) if width > 0 and height > 0 else None


def _jpeg_size(data: bytes) -> tuple[int, int]:
    position = 2
    for _ in range(MAX_STEPS):
        if data[position] != 0xFF:
            raise ValueError("no marker")
        position += 1
        marker = data[position]
        if marker == 0xFF:  # filling
            continue
        if marker in _JPEG_STANDALONE:
            position += 1
            continue
        (length,) = struct.unpack_from(">H", data, position + 1)
        if marker in _JPEG_FRAMES:
            height, width = struct.unpack_from(">HH", data, position + 4)
            return width, height
        if marker in (0xD8, 0xD9, 0xDA) or length < 2:
            break
        position += 1 + length
    raise ValueError("no frame header before the pixels")


def _png_size(data: bytes) -> tuple[int, int]:
    length, kind, width, height = struct.unpack_from(">I4sII", data, 8)
    if kind != b"IHDR" or length != 13:
        raise ValueError("no header chunk")
    return width, height


def _gif_size(data: bytes) -> tuple[int, int]:
    width, height, flags = struct.unpack_from("<HHB", data, 6)
    position = 13 + (3 << ((flags & 7) + 1) if flags & 0x80 else 0)
    is_extension = False
    for _ in range(MAX_STEPS):
        if is_extension:  # blocks up to an empty one
            is_extension = data[position] > 0
            position += 1 + data[position]
        elif data[position] == 0x21:
            is_extension = True
            position += 2
        else:
            break
    if is_extension or data[position] != 0x2C:
        raise ValueError("no image")
    left, top, frame_width, frame_height = struct.unpack_from("<HHHH", data, position + 1)
    return max(width, left + frame_width), max(height, top + frame_height)  # decoders enlarge the screen


def _webp_size(data: bytes) -> tuple[int, int]:
    kind, body = data[12:16], data[20:30]
    if kind == b"VP8X":
        return 1 + _uint24(body, 4), 1 + _uint24(body, 7)
    if kind == b"VP8L" and body[0] == 0x2F:
        (bits,) = struct.unpack_from("<I", body, 1)
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if kind == b"VP8 " and body[3:6] == b"\x9d\x01\x2a":
        width, height = struct.unpack_from("<HH", body, 6)
        return width & 0x3FFF, height & 0x3FFF
    raise ValueError("no image chunk")


def _uint24(data: bytes, start: int) -> int:
    low, high = struct.unpack_from("<HB", data, start)
    return low | high << 16


def _avif_size(data: bytes) -> tuple[int, int]:
    """The largest extent of any item: a picture made of tiles, or one of them."""
    meta_start, meta_end = _boxes(data, b"meta", 0, len(data))[0]
    properties = _boxes(data, b"iprp", meta_start + 4, meta_end)[0]
    container = _boxes(data, b"ipco", *properties)[0]
    sizes = [struct.unpack_from(">II", data, start + 4) for start, _ in _boxes(data, b"ispe", *container)]
    width, height = max(sizes, key=lambda size: size[0] * size[1])
    return width, height


def _boxes(data: bytes, wanted: bytes, start: int, end: int) -> list[tuple[int, int]]:
    """Bounds of the contents of the boxes of one kind between two offsets (ISO/IEC 14496-12 section 4.2)."""
    found: list[tuple[int, int]] = []
    for _ in range(MAX_STEPS):
        if start + 8 > end:
            return found
        size, kind = struct.unpack_from(">I4s", data, start)
        head = 8
        if size == 1:
            (size,) = struct.unpack_from(">Q", data, start + 8)
            head = 16
        size = end - start if size == 0 else size
        if size < head or start + size > end:
            raise ValueError("a box that does not fit")
        if kind == wanted:
            found.append((start + head, start + size))
        start += size
    raise ValueError("too many boxes")
