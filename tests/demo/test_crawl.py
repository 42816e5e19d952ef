"""Every planted resource is linked from a page and answers, or fails to, as its kind says."""

import io
from pathlib import Path
from urllib.parse import urljoin, urlsplit

import numpy as np
import pytest
from PIL import Image
from selectolax.lexbor import LexborHTMLParser
from warcio.archiveiterator import ArchiveIterator

from demo.crawl import write_crawl
from demo.planted import COPIES, NUM_PLANTED, Picture, Resource, make_resources
from demo.tiles import encode_jpeg


def pictures(num: int, seed: int) -> list[Picture]:
    """Distinct smooth images."""
    rng = np.random.default_rng(seed)
    result: list[Picture] = []
    for i in range(num):
        coarse = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8))
        result.append(
            Picture(f"{i:03d}", f"label-{i % 3}", "image/jpeg", encode_jpeg(coarse.resize((120, 100)), quality=90))
        )
    return result


@pytest.fixture(scope="module")
def resources() -> list[Resource]:
    return make_resources(pictures(100, 0), pictures(12, 1))


@pytest.fixture(scope="module")
def answers(resources: list[Resource], tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, str, bytes]]:
    """URL -> (status, content type, body) of every response in the WARC files."""
    folder: Path = tmp_path_factory.mktemp("crawl")
    write_crawl(resources, folder)
    found: dict[str, tuple[str, str, bytes]] = {}
    for path in sorted(folder.iterdir()):
        with path.open("rb") as stream:
            for record in ArchiveIterator(stream):
                if record.rec_type == "response":
                    url = record.rec_headers.get_header("WARC-Target-URI")
                    http = record.http_headers
                    assert url not in found
                    found[url] = (
                        http.get_statuscode(),
                        http.get_header("Content-Type"),
                        record.content_stream().read(),
                    )
    return found


def linked(answers: dict[str, tuple[str, str, bytes]]) -> set[str]:
    """Absolute URLs of every src and srcset of every page."""
    urls: set[str] = set()
    for page_url, (_, content_type, body) in answers.items():
        if not content_type.startswith("text/html; charset="):
            continue
        tree = LexborHTMLParser(body.decode(content_type.partition("charset=")[2]))
        base = tree.css_first("base")
        root = base.attributes["href"] if base is not None else page_url
        for image in tree.css("img"):
            links = [image.attributes.get("src") or ""]
            links += [part.split()[0] for part in (image.attributes.get("srcset") or "").split(",") if part.strip()]
            urls |= {urljoin(root or "", link) for link in links if link}
    return urls


def test_every_resource_is_linked_from_a_page(resources, answers):
    found = linked(answers)
    assert {resource.url for resource in resources} <= found
    others = found - {resource.url for resource in resources}
    assert {urlsplit(url).scheme for url in others} <= {"data", "javascript", "about", "mailto"}


def test_each_kind_answers_as_it_should(resources, answers):
    for resource in resources:
        if resource.kind == "dead":
            assert resource.url not in answers
            continue
        status, content_type, body = answers[resource.url]
        assert (status == "404") == (resource.kind == "missing")
        assert content_type == resource.mime
        assert body == resource.read()


def test_junk_is_what_it_is_called(resources):
    for resource in resources:
        if resource.kind in ("truncated", "html_as_image", "random_bytes"):
            with pytest.raises(OSError), Image.open(io.BytesIO(resource.read())) as image:
                image.load()
        elif resource.kind in ("thumbnail", "banner", "blank"):
            with Image.open(io.BytesIO(resource.read())) as image:
                if resource.kind == "thumbnail":
                    assert max(image.size) < 48
                elif resource.kind == "banner":
                    assert image.width / image.height > 5
                else:
                    assert np.asarray(image.convert("RGB")).std(axis=(0, 1)).max() == 0


def test_copies_look_like_their_originals_and_only_duplicates_have_their_bytes(resources):
    by_url = {resource.url: resource.read() for resource in resources}
    by_url |= {picture.name: picture.read() for picture in pictures(12, 1)}
    num_copies = 0
    for resource in resources:
        if resource.kind not in COPIES:
            continue
        num_copies += 1
        original = by_url[resource.original or ""]
        assert (resource.read() == original) == (resource.kind == "duplicate")
        small = [
            np.asarray(Image.open(io.BytesIO(data)).convert("L").resize((8, 8))) for data in (resource.read(), original)
        ]
        assert np.corrcoef(small[0].ravel(), small[1].ravel())[0, 1] > 0.97
    assert num_copies > 20


def test_smaller_pools_get_proportionally_fewer_planted(resources):
    assert sum(resource.kind == "copy_reencoded" for resource in resources) == NUM_PLANTED["copy_reencoded"] // 10
