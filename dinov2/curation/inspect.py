"""A page to set retrieval's numbers by: seeds beside their nearest pool images, with what became of them.

One HTML file that needs nothing else: thumbnails are JPEG data URIs.
"""

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from jinja2 import Environment
from PIL import Image

from dinov2.curation.params import InspectParams
from dinov2.data.decode import DecodeError, decode_rgb
from dinov2.search import top_k
from dinov2.shards import ShardReader

JPEG_QUALITY = 80
TEMPLATE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Retrieval</title><style>
body { font: 14px/1.4 system-ui, sans-serif; margin: 2rem auto; max-width: 72rem; padding: 0 1rem; color: #222 }
section { display: flex; flex-wrap: wrap; gap: .6rem; padding: .8rem 0; border-top: 1px solid #ddd }
figure { margin: 0; width: {{ size_px + 8 }}px } figcaption { font-size: 12px; color: #555; overflow-wrap: anywhere }
img { max-width: {{ size_px }}px; border: 4px solid #ddd; display: block }
.seed img { border-color: #333 } .taken img { border-color: #2a8a3e } .other img { border-color: #7fb98b }
.left img { opacity: .55 }
</style></head><body>
<h1>What the seeds retrieved</h1>
<p>{{ num_seeds }} seeds brought in {{ num_retrieved }} of {{ num_pool }} pool images. Below, {{ panels | length }}
seeds (dark frame) with their nearest pool images and the cosine between them: taken for this seed (green), taken for
another one (pale green), not taken (faded).</p>
{% for panel in panels %}
<section><figure class="seed">{{ photo(panel.image) }}<figcaption>{{ panel.label }}<br>{{ panel.strategy }}-based,
cluster {{ panel.cluster }}</figcaption></figure>
{% for near in panel.neighbors %}<figure class="{{ near.status }}">{{ photo(near.image) }}<figcaption>
{{ '%.3f' % near.cosine }}, cluster {{ near.cluster }}</figcaption></figure>
{% endfor %}</section>
{% endfor %}</body></html>
"""


class Gallery(NamedTuple):
    """Images with their descriptors, row by row."""

    rows: Sequence[Mapping[str, Any]]
    vectors: Float[np.ndarray, "n d"]
    clusters: Sequence[int]


class Neighbor(NamedTuple):
    """A pool image near a seed."""

    image: str
    cosine: float
    cluster: int
    status: str  # taken | other | left


class Panel(NamedTuple):
    """A seed and its neighbours."""

    image: str
    label: str
    strategy: str
    cluster: int
    neighbors: list[Neighbor]


def inspection_page(
    params: InspectParams,
    *,
    seeds: Gallery,
    pool: Gallery,
    taken_by: Mapping[int, int],
    strategies: Mapping[str | None, str],
    reader: ShardReader,
) -> str:
    """The page as HTML. `taken_by` gives, for each retrieved row of the pool, the row of the seed that took it."""
    num = min(params.num_seeds, len(seeds.rows))
    shown = np.unique(np.linspace(0, len(seeds.rows) - 1, num).round().astype(int)) if num else np.empty(0, int)
    cosine, index = top_k(seeds.vectors[shown], pool.vectors, min(params.num_neighbors, len(pool.rows)))
    panels = []
    for place, seed in enumerate(shown.tolist()):
        neighbors = []
        for row, value in zip(index[place].tolist(), cosine[place].tolist(), strict=True):
            status = "left" if row not in taken_by else "taken" if taken_by[row] == seed else "other"
            image = _thumbnail(reader, pool.rows[row], params.thumbnail_px)
            neighbors.append(Neighbor(image, value, pool.clusters[row], status))
        label = seeds.rows[seed]["label"]
        image = _thumbnail(reader, seeds.rows[seed], params.thumbnail_px)
        panels.append(Panel(image, label or "no label", strategies[label], seeds.clusters[seed], neighbors))
    environment = Environment(autoescape=True, trim_blocks=True)
    photo = environment.from_string("{% macro photo(uri) %}<img alt='' src='{{ uri }}'>{% endmacro %}").module
    return environment.from_string(TEMPLATE).render(
        panels=panels, photo=photo.photo, size_px=params.thumbnail_px,  # pyright: ignore[reportAttributeAccessIssue]
        num_seeds=len(seeds.rows), num_retrieved=len(taken_by), num_pool=len(pool.rows),
    )


def _thumbnail(reader: ShardReader, row: Mapping[str, Any], size_px: int) -> str:
    """A JPEG data URI; a grey square where the image can't be read."""
    try:
        image = Image.fromarray(decode_rgb(reader.read(row)))
    except (DecodeError, OSError):
        image = Image.new("RGB", (size_px, size_px), (200, 200, 200))
    image.thumbnail((size_px, size_px))
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=JPEG_QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode()
