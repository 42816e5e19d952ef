"""Keep one image of every group of near-copies, and none that copies an evaluation image.

In:    --filter manifest.parquet; --embed copy descriptors of pool, seeds and evaluation images
Out:   manifest.parquet        the pool's unique images
       seeds.parquet           the seeds' unique images
       removed.parquet         the pool's others with their cosine: reason evaluation_copy (witness: the evaluation
                               image) or copy (witness: the neighbour on the way to the image that stays)
       seeds_removed.parquet   the same of the seeds
Run:   python -m tasks.dedup --filter data/filter --embed data/embed --out data/dedup
Cost:  n^2 d / 2 multiplications for n images: under a second to 10,000, half a minute at 100,000 on two cores
"""

import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from dinov2.params import InputError, Params
from dinov2.records import MANIFEST, REMOVED, Summary, count_reasons, read_table, write_table
from dinov2.store import Store
from tasks.stage import main

if TYPE_CHECKING:
    from dinov2.curation.dedup import Contacts, Groups

VERSION = 1
log = logging.getLogger(__name__)

Cosine = Annotated[float, Field(gt=0, le=1)]
Row = dict[str, Any]


class DedupParams(Params):
    """What counts as a copy."""

    min_cosine: Cosine
    """Two images of pool and seeds at or above this are copies (paper, with SSCD: 0.6)."""
    evaluation_min_cosine: Cosine
    """An image at or above this to an evaluation image is a copy of it (paper, with SSCD: 0.45)."""
    method: Literal["exact", "faiss"]
    """Our block join or faiss's flat index; both find every pair."""
    warn_component_share: Annotated[float, Field(gt=0, le=1)]
    """A component with more than this share of all images is warned of: the threshold is then too low."""


def run(params: DedupParams, *, filter: Path, embed: Path, out: Path, store: Store) -> Summary:  # noqa: A002
    """Find the copies among the embedded images; write who stays and who goes, and why."""
    # imported in the job, not in the submitting process
    import numpy as np

    from dinov2.curation.dedup import evaluation_contacts, group_copies, preference
    from dinov2.curation.descriptors import EMBEDDED, read_descriptors, read_embedded
    from dinov2.curation.index import find_pairs

    pool, seeds, evaluation = (read_embedded(embed, name) for name in ("pool", "seeds", "evaluation"))
    _check_same_pool(pool, filter, embed)
    rows = seeds + pool
    vectors = np.concatenate([read_descriptors(embed, name, "copy", store) for name in ("seeds", "pool")])
    held_out = read_descriptors(embed, "evaluation", "copy", store)
    contacts = evaluation_contacts(
        find_pairs(vectors, held_out, params.evaluation_min_cosine, params.method), len(rows)
    )
    pairs = find_pairs(vectors, None, params.min_cosine, params.method)
    is_seed = np.arange(len(rows)) < len(seeds)
    area_px = np.array([row["width"] * row["height"] for row in rows])
    groups = group_copies(pairs, preference(is_seed, area_px, [row["id"] for row in rows]), contacts.witness >= 0)
    sizes = np.bincount(groups.component)
    if sizes.max() > max(2, params.warn_component_share * len(rows)):
        log.warning(
            "one component holds %d of %d images: chains of similar images are taken for copies; raise "
            "dedup.min_cosine, which is %g", sizes.max(), len(rows), params.min_cosine,
        )

    removed = _removed(rows, evaluation, contacts, groups)
    kept_seeds = [row for row, keep in zip(seeds, groups.keep[: len(seeds)], strict=True) if keep]
    kept_pool = [row for row, keep in zip(pool, groups.keep[len(seeds) :], strict=True) if keep]
    if not kept_seeds or not kept_pool:
        raise InputError(
            f"no image of the {'pool' if kept_seeds else 'seeds'} is left after dedup ({len(pool)} of the pool and "
            f"{len(seeds)} seeds came in); raise dedup.min_cosine or dedup.evaluation_min_cosine, or look at the inputs"
        )
    seeds_removed, pool_removed = removed[: len(seeds)], removed[len(seeds) :]
    write_table(out / "manifest.parquet", MANIFEST, ({name: row[name] for name in MANIFEST.names} for row in kept_pool))
    write_table(out / "seeds.parquet", EMBEDDED, kept_seeds)
    write_table(out / "removed.parquet", REMOVED, _present(pool_removed))
    write_table(out / "seeds_removed.parquet", REMOVED, _present(seeds_removed))
    if len(kept_seeds) < len(seeds):
        log.warning("%d of %d seeds were removed: %s", len(seeds) - len(kept_seeds), len(seeds),
                    count_reasons(_present(seeds_removed)))
    return Summary(
        num_in=len(pool),
        num_kept=len(kept_pool),
        dropped=count_reasons(_present(pool_removed)),
        metrics={
            "num_pairs": len(pairs.first),
            "num_components": int((sizes > 1).sum()),
            "largest_component": int(sizes.max()),
            "pair_recall": 1.0,  # both methods look at every pair
            "num_seeds": len(kept_seeds),
            "num_seeds_removed": len(seeds) - len(kept_seeds),
        },
    )


def _present(rows: list[Row | None]) -> list[Row]:
    """The rows that are there."""
    return [row for row in rows if row is not None]


def _removed(rows: list[Row], evaluation: list[Row], contacts: "Contacts", groups: "Groups") -> list[Row | None]:
    """A row of REMOVED for each image that goes, None for each that stays."""
    result: list[Row | None] = []
    for number, row in enumerate(rows):
        about = {"id": row["id"], "url": row["url"] or row["path"]}
        if contacts.witness[number] >= 0:
            witness = evaluation[contacts.witness[number]]["id"]
            cosine = float(contacts.cosine[number])
            result.append({**about, "reason": "evaluation_copy", "witness_id": witness, "cosine": cosine})
        elif not groups.keep[number]:
            witness, cosine = rows[groups.witness[number]]["id"], float(groups.cosine[number])
            result.append({**about, "reason": "copy", "witness_id": witness, "cosine": cosine})
        else:
            result.append(None)
    return result


def _check_same_pool(pool: list[Row], filter_out: Path, embed: Path) -> None:
    kept = {row["id"] for row in read_table(filter_out / "manifest.parquet", MANIFEST)}
    strangers = [row["id"] for row in pool if row["id"] not in kept]
    if strangers:
        raise InputError(
            f"{embed} embeds {len(strangers)} images that {filter_out} does not have (the first: {strangers[0]}); "
            "run embed again on this filter's output"
        )


if __name__ == "__main__":
    sys.exit(main(run))
