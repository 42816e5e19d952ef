"""Drop images that are unfit: undecodable, too small, of extreme aspect, near constant, copies by PCA hash.

In:    manifest.parquet of download, and its shards in the store
Out:   out/manifest.parquet    MANIFEST of what stays, with width and height; the shards are those of download
       out/removed.parquet     REMOVED: every other image with its reason, and the witness of a copy
       out/pca_hash.npz        the fitted hash, with its version
Run:   python -m tasks.filter --download data/download --out data/filter
Cost:  one decode an image: about 500 of 0.2 megapixels a second and core; 1 kB of memory an image
"""

import sys
from pathlib import Path

from dinov2.curation.filters import FilterParams, filter_images
from dinov2.records import MANIFEST, REMOVED, Summary, count_reasons, read_table, write_table
from dinov2.shards import ShardReader
from dinov2.store import Store
from tasks.stage import main

VERSION = 1


def run(params: FilterParams, *, download: Path, out: Path, store: Store) -> Summary:
    """Keep the fit images of `download`."""
    manifest = read_table(download / "manifest.parquet", MANIFEST)
    store.check((row["shard"] for row in manifest), needed_by=download / "manifest.parquet")
    reader = ShardReader(store)
    result = filter_images(manifest, params, reader)
    reader.close()
    num_kept = write_table(out / "manifest.parquet", MANIFEST, result.rows)
    write_table(out / "removed.parquet", REMOVED, result.removed)
    result.pca_hash.save(out / "pca_hash.npz")
    return Summary(
        num_in=len(manifest),
        num_kept=num_kept,
        dropped=count_reasons(result.removed),
        metrics=result.metrics,
    )


if __name__ == "__main__":
    sys.exit(main(run))
