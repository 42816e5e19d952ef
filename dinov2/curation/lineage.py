"""The whole story of one image: page, record, shard, filters, descriptors, copies, seed; or where it ended and why.

Run:   python -m dinov2.curation.lineage ID [--data data] [--thumbnails story.html]
       ID is an image's id (sha256), its first digits, its URL, or a seed's path
Cost:  a few passes over each table; memory for what is found, not for the tables. No GPU, no torch
"""

import argparse
import sys
from pathlib import Path

from dinov2.album import Album
from dinov2.curation.looking.trace import Story, trace
from dinov2.params import InputError, load_section
from dinov2.render import rendered
from dinov2.store import Store, StoreParams

THUMBNAIL_PX = 192
LONGEST = 600  # characters of a line
STAGES = ("download", "filter", "embed", "retrieve")


def as_text(story: Story) -> str:
    """The story for a terminal: a line a fact."""
    lines = [f"image      {story.id or 'never fetched'}"]
    lines += [f"           {_short(story.url)}"] if story.url else []
    for event in story.events:
        for number, fact in enumerate(event.facts or [""]):
            head = f"{event.stage:<10} {event.outcome:<8}" if number == 0 else " " * 19
            lines.append(f"{head} {_short(fact)}".rstrip())
    return "\n".join(lines)


def _short(text: str) -> str:
    """Without the middle of what would fill a screen: a data: URI holds a whole image."""
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 40]}... ({len(text):,} characters)"


def as_html(story: Story, album: Album) -> str:
    """The story as one HTML page with thumbnails inlined."""
    album.find({image for image, _ in story.images})
    shown = [(image, about, album.thumbnail(image)) for image, about in story.images]
    return rendered("dinov2.curation.looking", "lineage.html.j2", story=story, shown=shown)


def main(arguments: list[str] | None = None) -> int:
    """Exit code 2 with one sentence where there is no such image."""
    parser = argparse.ArgumentParser(
        "python -m dinov2.curation.lineage", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("id", metavar="ID", help="id, its first digits, URL, or a seed's path")
    parser.add_argument("--data", type=Path, default=Path("data"), metavar="FOLDER", help="outputs of the stages")
    parser.add_argument("--thumbnails", type=Path, metavar="HTML", help="also write a page with the images")
    parser.add_argument("--params", type=Path, default=Path("params.yaml"), metavar="FILE", help="has the store")
    options = parser.parse_args(arguments)
    try:
        story = trace(options.data, options.id)
        sys.stdout.write(as_text(story) + "\n")
        if options.thumbnails:
            store = Store(load_section(options.params, "store", StoreParams))
            with Album(store, {stage: options.data / stage for stage in STAGES}, THUMBNAIL_PX) as album:
                options.thumbnails.write_text(as_html(story, album))
    except InputError as error:
        sys.stderr.write(f"lineage: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
