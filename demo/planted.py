"""What a crawl holds besides distinct photographs: copies, duplicates, thumbnails, broken files, banners, dead links.

Each is planted on purpose and known by its URL, so that `python -m demo check` can say what the curation found.
"""

import io
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont, ImageOps

from demo.tiles import encode_jpeg

SITES = ("news.example", "photos.example", "garden.example", "travel.example", "shop.example", "blog.example")
FORBIDDEN_SITES = ("ads.forbidden.example", "tracker.forbidden.example")  # params.yaml: crawl.refused_domains
DEAD_SITE = "dead.invalid"  # RFC 2606: never resolves
LARGEST_COPY_PX = 640  # longer side of copies
EXTENSIONS = {"image/jpeg": "jpg", "image/png": "png", "image/webp": "webp", "image/gif": "gif"}

# How many of each; a pool of fewer than FULL_POOL images gets proportionally fewer.
FULL_POOL = 1000
NUM_PLANTED = {
    "copy_reencoded": 90,
    "copy_resized": 80,
    "copy_cropped": 80,
    "evaluation_copy": 25,
    "duplicate": 40,
    "thumbnail": 60,
    "truncated": 10,
    "html_as_image": 10,
    "random_bytes": 10,
    "blank": 20,
    "banner": 20,
    "dead": 20,
    "missing": 6,
    "forbidden": 20,
}
EASY_COPIES = ("copy_reencoded", "copy_resized", "copy_cropped")
HARD_COPIES = ("copy_flipped", "copy_overlaid", "copy_grey", "copy_halved")  # the demo's thumbnails can't find them
COPIES = (*EASY_COPIES, *HARD_COPIES, "evaluation_copy", "duplicate")
PSEUDO_LINKS = (
    "data:image/gif;base64,R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7",
    "data:image/png;base64,iVBORw0KGgo=",
    "javascript:void(0)",
    "about:blank",
    "mailto:desk@news.example",
)
NUM_PSEUDO_LINKS = 15


class Picture(NamedTuple):
    """An image that the demo was given or cut."""

    name: str
    label: str
    mime: str
    source: bytes | Path

    def read(self) -> bytes:
        """Its bytes."""
        return self.source if isinstance(self.source, bytes) else self.source.read_bytes()


class Resource(NamedTuple):
    """What stands behind an image URL of the crawl."""

    url: str
    kind: str  # "photograph" or a key of NUM_PLANTED
    mime: str
    content: bytes | Path | None  # None: nothing answers
    alt: str
    original: str | None = None  # URL of the image this was made from; for evaluation copies, the file's path
    status: int = 200
    label: str = ""  # of a photograph

    def read(self) -> bytes:
        """Its bytes; empty where nothing answers."""
        return self.content.read_bytes() if isinstance(self.content, Path) else self.content or b""


def make_resources(
    pool: Sequence[Picture], evaluation: Sequence[Picture], counts: Mapping[str, int] = NUM_PLANTED
) -> list[Resource]:
    """Every image URL of the crawl with what answers there: the pool's pictures, and what is planted among them.

    `counts`: of each kind, in a pool of FULL_POOL. Deterministic in the order and contents of `pool` and `evaluation`.
    """
    rng = random.Random("resources")
    names = _Names(random.Random("names"))
    photographs: list[Resource] = []
    for picture in pool:
        url = names.new(rng.choice(SITES), picture.mime)
        alt = _alt(rng, picture)
        photographs.append(
            Resource(url, "photograph", picture.mime, picture.source, alt, label=picture.label)
        )
    resources = list(photographs)
    for kind, full_count in counts.items():
        count = min(full_count, -(-full_count * len(pool) // FULL_POOL))
        if kind == "evaluation_copy":
            chosen = rng.sample(range(len(evaluation)), min(count, len(evaluation)))
            sources = [
                Resource(evaluation[i].name, "", evaluation[i].mime, evaluation[i].source, _alt(rng, evaluation[i]))
                for i in chosen
            ]
        else:
            sources = [rng.choice(photographs) for _ in range(count)] if photographs else []
        resources.extend(_plant(kind, source, rng, names) for source in sources)
    return resources


class _Names:
    """Image URLs as sites have them, none twice."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._number = 0

    def new(self, site: str, mime: str) -> str:
        self._number += 1
        stem = f"{self._number:05d}-{self._rng.randrange(16**6):06x}"
        host = self._rng.choice((site, site, f"cdn.{site}"))
        folder = self._rng.choice(("images", "media/2023", "img/gallery"))
        query = self._rng.choice(("", "", "", "", "?v=2&w=640"))
        return f"https://{host}/{folder}/{stem}.{EXTENSIONS[mime]}{query}"


def _alt(rng: random.Random, picture: Picture) -> str:
    words = picture.label.replace("-", " ").replace("_", " ") or "something"
    return rng.choice((words, f"a photo of {words}", f"{words} \u2013 detail", f"caf\u00e9 & {words}", ""))


def _plant(kind: str, source: Resource, rng: random.Random, names: _Names) -> Resource:
    """One planted resource of `kind`, made from `source`."""
    mime, status, site = "image/jpeg", 200, rng.choice(SITES)
    content: bytes | Path | None
    if kind == "duplicate":
        mime, content = source.mime, source.content
    elif kind == "dead":
        site, content = DEAD_SITE, None
    elif kind == "missing":
        status, content = 404, b"<h1>404 Not Found</h1>"
    elif kind == "html_as_image":
        content = b"<!doctype html><title>Sign in</title><p>Sign in to see picture %d." % rng.randrange(10**6)
    elif kind == "random_bytes":
        content = rng.randbytes(rng.randint(2000, 8000))
    elif kind == "blank":
        mime, content = _blank(rng)
    elif kind == "forbidden":
        site = rng.choice(FORBIDDEN_SITES)
        content = encode_jpeg(_open(source).resize((300, 250)), quality=80)
    elif kind in ("thumbnail", "banner", "truncated"):
        content = _spoil(kind, _open(source), rng)
    else:
        content = _copy(kind, _open(source), rng)
    original = source.url if kind in (*COPIES, "thumbnail") else None
    alt = "" if kind == "blank" else source.alt
    return Resource(names.new(site, mime), kind, mime, content, alt, original, status)


def _spoil(kind: str, image: Image.Image, rng: random.Random) -> bytes:
    """What is left of an image that is of no use any more."""
    if kind == "thumbnail":
        longer_px = rng.randint(24, 47)
        image.thumbnail((longer_px, longer_px))
        return encode_jpeg(image, quality=80)
    if kind == "truncated":
        whole = encode_jpeg(image, quality=90)
        return whole[: round(len(whole) * rng.uniform(0.15, 0.6))]
    assert kind == "banner", kind
    height_px = min(image.height, max(2, image.width // rng.randint(7, 10)))
    top = rng.randint(0, image.height - height_px)
    strip = image.crop((0, top, image.width, top + height_px))
    return encode_jpeg(strip.resize((720, round(720 * strip.height / strip.width))), quality=85)


def _copy(kind: str, image: Image.Image, rng: random.Random) -> bytes:
    """A near-copy as other sites make them; those of evaluation images are of the easy kinds."""
    if kind == "evaluation_copy":
        kind = rng.choice(EASY_COPIES)
    if kind in HARD_COPIES:
        return encode_jpeg(_altered(kind, image, rng), quality=rng.randint(75, 90))
    if kind == "copy_reencoded":
        return encode_jpeg(image, quality=rng.randint(30, 60))
    if kind == "copy_resized":
        scale = max(rng.uniform(0.6, 0.9), min(1.0, 72 / min(image.size)))  # else it would be dropped as too small
        size = (round(image.width * scale), round(image.height * scale))
        return encode_jpeg(image.resize(size, Image.Resampling.BICUBIC), quality=rng.randint(75, 90))
    assert kind == "copy_cropped", kind
    margin = rng.uniform(0.03, 0.05) / 2  # 3 to 5 % of each side's length, half of it at either end
    x, y = max(1, round(margin * image.width)), max(1, round(margin * image.height))
    return encode_jpeg(image.crop((x, y, image.width - x, image.height - y)), quality=rng.randint(75, 90))


def _altered(kind: str, image: Image.Image, rng: random.Random) -> Image.Image:
    """A copy that looks different: mirrored, written over, without colour, or half of the picture."""
    if kind == "copy_flipped":
        return ImageOps.mirror(image)
    if kind == "copy_grey":
        return ImageOps.grayscale(image).convert("RGB")
    if kind == "copy_halved":  # 70 % of each side, anywhere
        width, height = round(0.7 * image.width), round(0.7 * image.height)
        left, top = rng.randint(0, image.width - width), rng.randint(0, image.height - height)
        return image.crop((left, top, left + width, top + height))
    assert kind == "copy_overlaid", kind
    written = image.copy()
    band_px = max(8, written.height // 5)
    top = rng.choice((0, written.height - band_px))
    draw = ImageDraw.Draw(written)
    draw.rectangle((0, top, written.width, top + band_px), fill=(rng.randrange(256), rng.randrange(256), 40))
    draw.text((4, top + 2), "photos.example", fill="white", font=ImageFont.load_default(max(6, band_px // 2)))
    return written


def _blank(rng: random.Random) -> tuple[str, bytes]:
    """Type and bytes of a placeholder of one colour."""
    mime, form = rng.choice((("image/jpeg", "JPEG"), ("image/png", "PNG"), ("image/gif", "GIF")))
    colour = (rng.randrange(256), rng.randrange(256), rng.randrange(256))
    stream = io.BytesIO()
    Image.new("RGB", (rng.randint(110, 300), rng.randint(110, 300)), colour).save(stream, form)
    return mime, stream.getvalue()


def _open(source: Resource) -> Image.Image:
    with Image.open(io.BytesIO(source.read())) as image:
        image.draft("RGB", (LARGEST_COPY_PX, LARGEST_COPY_PX))
        pixels = image.convert("RGB")
    pixels.thumbnail((LARGEST_COPY_PX, LARGEST_COPY_PX))
    return pixels
