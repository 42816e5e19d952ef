"""Drop images that are unfit: undecodable, too small, of extreme aspect, near constant, unsafe for work, copies by PCA
hash; blur the faces on the others.

In:    manifest.parquet of download, and its shards in the store
Out:   out/manifest.parquet    MANIFEST of what stays, with width and height. An image with faces is kept blurred,
                               under a new id, in a new shard, with the id it came under as source_id
       out/removed.parquet     REMOVED: every other image with its reason, and the witness of a copy
       out/looks.parquet       LOOKS: what was measured of every image, by the id it came under
       out/pca_hash.npz        the fitted hash, with its version
       out/blobs.json          the shards of blurred images; they lie in the store
Run:   python -m tasks.filter --download data/download --out data/filter
Cost:  one decode an image, all else is small beside the two networks: see benchmarks/results/filter.md; parts of
       `part_images` by any number of workers, then one job of about 100 bytes an image
"""

import sys
from pathlib import Path

from dinov2.curation.filter.filters import FilterParams
from dinov2.curation.filter.gathering import gather
from dinov2.curation.filter.looks import count_parts, look_part, part_path
from dinov2.records import MANIFEST, Summary
from dinov2.store import Store
from dinov2.tables import distinct
from tasks.fan_out import Phase
from tasks.stage import main

VERSION = 2


PHASES = (Phase("looks", count_parts, look_part),)


def run(params: FilterParams, *, download: Path, out: Path, work: Path, store: Store) -> Summary:
    """Gather the parts of `download`, which have been looked at, and find the copies among them."""
    parts = [part_path(work, part) for part in range(count_parts(params, download=download))]
    summary = gather(parts, params, out)
    given = set(distinct(download / "manifest.parquet", MANIFEST, "shard"))
    store.pin(out, (shard for shard in distinct(out / "manifest.parquet", MANIFEST, "shard") if shard not in given))
    return summary


if __name__ == "__main__":
    sys.exit(main(run))
