"""Keep one image of every group of near-copies, and none that copies an evaluation image.

In:    --filter manifest.parquet; --embed copy descriptors of pool, seeds and evaluation images
Out:   manifest.parquet        the pool's unique images
       seeds.parquet           the seeds' unique images
       removed.parquet         the pool's others: reason `evaluation_copy:<set>` (witness: the evaluation image), `copy`
                               (witness: the neighbour on the way to the cause), `duplicate_id`, or `bad_descriptor`
       seeds_removed.parquet   the same of the seeds
       plan.json               the join that was chosen, and its recall on the sample
Run:   python -m tasks.dedup --filter data/filter --embed data/embed --out data/dedup
Cost:  benchmarks/results/dedup.md. Memory: about 16 x dims x block_rows bytes in a part; the job that gathers holds
       some 300 bytes for each image that has a copy, and one part's pairs

Parts: each block of rows is compared with the evaluation images, always with every one, and with the sampled rows; then
the join is planned; then each pair of blocks (or group of cells) is joined. The rule: dinov2/curation/dedup/plan.py.
"""

import logging
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, StringConstraints

from dinov2.params import InputError, Params
from dinov2.records import MANIFEST, Summary
from dinov2.store import Store
from dinov2.tables import num_rows
from tasks.fan_out import Phase
from tasks.stage import main

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from dinov2.curation.dedup.pairs import PairFiles
    from dinov2.curation.dedup.plan import Plan
    from dinov2.curation.dedup.recall import Recall
    from dinov2.curation.descriptors import Rows

VERSION = 2
log = logging.getLogger(__name__)

IMAGES = ("seeds", "pool")  # rows are counted through both
CELLS_AT_ONCE = 64
FEW = 8  # the sample is then a quarter of the exact join

Cosine = Annotated[float, Field(gt=0, le=1)]


class EvaluationSet(Params):
    """Images that no training image may copy."""

    folder: str
    """Where they lie below the evaluation folder; empty: all that no other set takes."""
    min_cosine: Cosine
    """An image at or above this to one of them is a copy of it (paper, with SSCD: 0.45)."""


class DedupParams(Params):
    """What counts as a copy, and how copies are looked for."""

    min_cosine: Cosine
    """Two images of pool and seeds at or above this are copies (paper, with SSCD: 0.6)."""
    evaluation_sets: dict[Annotated[str, StringConstraints(pattern=r"^[a-z0-9_]+$")], EvaluationSet]
    """Each with its own threshold; every evaluation image belongs to the set with the longest folder that holds it."""
    method: Literal["auto", "exact", "rotation", "cells", "faiss"]
    """`auto`: the cheapest that reaches `min_recall` on a sample, and `exact` for few images."""
    min_recall: Annotated[float, Field(gt=0, le=1)]
    """Share of the pairs that must be found; a method that does not reach it on the sample is not used."""
    sample_rows: Annotated[int, Field(gt=0)]
    """Images that are compared with all others to measure recall; `auto` is exact up to FEW times as many."""
    seed: Annotated[int, Field(ge=0)]
    """Of the sample, the random directions and the cells."""
    block_rows: Annotated[int, Field(gt=0)]
    """Images in a block: bounds memory, and divides the work into parts."""
    device: Literal["cpu", "cuda"]
    """Where products are computed; finds the same pairs. On a GPU `exact` is the fastest: benchmarks/results/gpu.md."""
    precision: Literal["fp32", "bf16"]
    """Arithmetic of products, of no effect on the pairs: bf16 is twice as fast where a processor has it, else slow."""
    warn_component_share: Annotated[float, Field(gt=0, le=1)]
    """A component with more than this share of all images is warned of: the threshold is then too low."""


def count_blocks(params: DedupParams, *, embed: Path) -> int:
    """Blocks of rows of seeds and pool."""
    return -(-sum(num_rows(embed / f"{name}.parquet") for name in IMAGES) // params.block_rows)


def look(part: int, params: DedupParams, *, filter: Path, embed: Path, work: Path, store: Store) -> None:
    """Compare a block with the evaluation images and with the sampled rows, exactly."""
    # imported in the job, not in the submitting process
    import numpy as np

    from dinov2.curation.dedup.decontaminate import contacts_of, set_of_each
    from dinov2.curation.dedup.join import EXACT, pairs_above
    from dinov2.curation.dedup.pairs import save_array, save_pairs
    from dinov2.curation.dedup.products import engine
    from dinov2.curation.dedup.verdicts import check_inputs
    from dinov2.curation.descriptors import open_rows

    if part == 0:
        check_inputs(embed, filter)
    rows, start = _rows(embed, store), part * params.block_rows
    block, products = rows.read(start, start + params.block_rows), engine(params.device, params.precision)
    thresholds = np.array([one.min_cosine for one in params.evaluation_sets.values()])
    homes = set_of_each(embed, _folders(params))
    held_out = open_rows(embed, ["evaluation"], "copy", store)
    contacts = contacts_of(block, held_out, thresholds[homes], homes, products, at_once=params.block_rows)
    save_pairs(work / "contacts" / f"{part:06d}.npy", contacts, first=start)
    chosen = _sampled(params, rows)
    pairs = pairs_above(rows.take(chosen), block, params.min_cosine, EXACT, products)
    others = pairs._replace(first=chosen[pairs.first], second=pairs.second + start)
    others = type(pairs)(*(column[others.first != others.second] for column in others))
    save_pairs(work / "sampled" / f"{part:06d}.npy", others)
    save_array(work / "bad" / f"{part:06d}.npy", np.flatnonzero(~block.any(axis=1)) + start)


def count_plans() -> int:
    """The one plan."""
    return 1


def choose_join(part: int, params: DedupParams, *, embed: Path, work: Path, store: Store) -> None:
    """Choose the join."""
    from dinov2.curation.dedup.plan import choose_plan, load_sample, save_plan

    assert part == 0
    rows = _rows(embed, store)
    method = params.method
    if method == "auto" and len(_sampled(params, rows)) == 0:
        method = "exact"
    chosen = choose_plan(
        rows,
        load_sample(work / "sampled"),
        method=method,
        min_cosine=params.min_cosine,
        min_recall=params.min_recall,
        seed=params.seed,
    )
    log.info("join of %d rows: %s", len(rows), chosen.method)
    save_plan(work / "plan", chosen)


def count_visits(params: DedupParams, *, embed: Path, work: Path) -> int:
    """Blocks whose rows visit cells."""
    return count_blocks(params, embed=embed) if _plan(work).method == "cells" else 0


def visit(part: int, params: DedupParams, *, embed: Path, work: Path, store: Store) -> None:
    """Find the cells of a block's rows."""
    from dinov2.curation.dedup.cells import block_visits, save_visits

    chosen, rows = _plan(work), _rows(embed, store)
    assert chosen.centroids is not None
    block = rows.read(part * params.block_rows, (part + 1) * params.block_rows)
    save_visits(work / "visits", part, block_visits(block, chosen.centroids, chosen.num_visits))


def count_joins(params: DedupParams, *, embed: Path, work: Path) -> int:
    """Pairs of blocks, or groups of cells."""
    chosen = _plan(work)
    if chosen.method == "cells":
        assert chosen.centroids is not None
        return -(-len(chosen.centroids) // CELLS_AT_ONCE)
    num_blocks = count_blocks(params, embed=embed)
    return num_blocks * (num_blocks + 1) // 2


def join(part: int, params: DedupParams, *, embed: Path, work: Path, store: Store) -> None:
    """Find the pairs of a pair of blocks, or of a group of cells."""
    from dinov2.curation.dedup.cells import join_cells, load_visits
    from dinov2.curation.dedup.index import faiss_pairs_above
    from dinov2.curation.dedup.join import pairs_above
    from dinov2.curation.dedup.pairs import block_pair, save_pairs
    from dinov2.curation.dedup.products import engine

    chosen, rows, path = _plan(work), _rows(embed, store), work / "join" / f"{part:06d}.npy"
    num_blocks, products = count_blocks(params, embed=embed), engine(params.device, params.precision)
    if chosen.method == "cells":
        visits = load_visits(work / "visits", num_blocks, params.block_rows)
        group = range(part * CELLS_AT_ONCE, (part + 1) * CELLS_AT_ONCE)
        save_pairs(path, join_cells(group, rows, visits, params.min_cosine, products, at_once=params.block_rows))
        return
    row, column = (block * params.block_rows for block in block_pair(part, num_blocks))
    left = rows.read(row, row + params.block_rows)
    right = None if row == column else rows.read(column, column + params.block_rows)
    if chosen.method == "faiss":
        pairs = faiss_pairs_above(left, right, params.min_cosine)
    else:
        pairs = pairs_above(left, right, params.min_cosine, chosen.screen, products)
    save_pairs(path, pairs, first=row, second=column)


PHASES = (
    Phase("look", count_blocks, look),
    Phase("plan", count_plans, choose_join),
    Phase("visit", count_visits, visit),
    Phase("join", count_joins, join),
)


def run(params: DedupParams, *, filter: Path, embed: Path, out: Path, work: Path, store: Store) -> Summary:
    """Group the pairs that the parts found; write who stays and who goes, and why."""
    import numpy as np

    from dinov2.curation.dedup.decontaminate import set_of_each
    from dinov2.curation.dedup.pairs import PairFiles
    from dinov2.curation.dedup.verdicts import Verdicts
    from dinov2.curation.descriptors import EMBEDDED

    copies, contacts, bad = (sorted((work / name).glob("*.npy")) for name in ("join", "contacts", "bad"))
    homes = set_of_each(embed, _folders(params))
    verdicts = Verdicts(
        embed, PairFiles(copies), PairFiles(contacts), np.concatenate([np.load(path) for path in bad]),
        {name: homes == place for place, name in enumerate(params.evaluation_sets)},
    )
    num_images, largest = len(_rows(embed, store)), int(verdicts.sizes.max())
    if largest > max(2, params.warn_component_share * num_images):
        log.warning(
            "one component holds %d of %d images: chains of similar images are taken for copies; raise "
            "dedup.min_cosine, which is %g", largest, num_images, params.min_cosine,
        )
    num_seeds, seeds_dropped = verdicts.write("seeds", out / "seeds.parquet", EMBEDDED, out / "seeds_removed.parquet")
    num_pool, dropped = verdicts.write("pool", out / "manifest.parquet", MANIFEST, out / "removed.parquet")
    lost_seeds = bool(seeds_dropped) and not num_seeds
    if lost_seeds or not num_pool:
        raise InputError(
            f"no image of the {'seeds' if lost_seeds else 'pool'} is left after dedup (dropped: {seeds_dropped} of the "
            f"seeds, {dropped} of the pool); raise dedup.min_cosine or the thresholds of dedup.evaluation_sets, or "
            "look at the inputs"
        )
    if seeds_dropped:
        log.warning("%d seeds were removed: %s", sum(seeds_dropped.values()), seeds_dropped)
    shutil.copy(work / "plan" / "plan.json", out / "plan.json")
    measured = _found(work, PairFiles(copies), num_images)
    return Summary(
        num_in=num_pool + sum(dropped.values()),
        num_kept=num_pool,
        dropped=dropped,
        metrics={
            "num_pairs": verdicts.num_pairs,
            "num_components": int((verdicts.sizes > 1).sum()),
            "largest_component": largest,
            "pair_recall": measured.share,
            "pair_recall_low": measured.low,
            "num_sampled_pairs": measured.num_pairs,
            "num_seeds": num_seeds,
            "num_seeds_removed": sum(seeds_dropped.values()),
            **{f"num_copies_of_{name}": num for name, num in verdicts.num_copies_of.items()},
        },
    )


def _found(work: Path, copies: "PairFiles", num_images: int) -> "Recall":
    """Recall of what the join found, on the sampled pairs that its plan was measured on."""
    from dinov2.curation.dedup.pairs import are_among
    from dinov2.curation.dedup.plan import load_sample
    from dinov2.curation.dedup.recall import recall

    chosen, (first, second) = _plan(work), load_sample(work / "sampled")
    measured = recall(are_among(first, second, copies, num_images), first)
    if measured.share < chosen.recall.share:  # of cells, near ties may fall otherwise in blocks than in the sample
        log.warning("the join found %.4f of the sampled pairs, its plan %.4f", measured.share, chosen.recall.share)
    return chosen.recall if chosen.method in ("exact", "faiss") else measured


def _folders(params: DedupParams) -> dict[str, str]:
    return {name: one.folder for name, one in params.evaluation_sets.items()}


def _rows(embed: Path, store: Store) -> "Rows":
    from dinov2.curation.descriptors import open_rows

    return open_rows(embed, IMAGES, "copy", store)


def _sampled(params: DedupParams, rows: "Rows") -> "NDArray[np.int64]":
    """Numbers of the rows that are compared with all others."""
    from dinov2.curation.dedup.recall import sampled_rows

    few = params.method == "auto" and len(rows) <= FEW * params.sample_rows
    known = params.method in ("exact", "faiss") or few
    return sampled_rows(len(rows), 0 if known else params.sample_rows, params.seed)


def _plan(work: Path) -> "Plan":
    from dinov2.curation.dedup.plan import load_plan

    return load_plan(work / "plan")


if __name__ == "__main__":
    sys.exit(main(run))
