"""Plans of the curation: formulas by hand, growth, and docs/scale.md as the command prints it."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from dinov2.curation.costs.__main__ import main
from dinov2.curation.costs.plan import Cost, asked, costs_of, plan_stage
from dinov2.curation.costs.rates import read_rates
from dinov2.curation.costs.sizes import Assumed, Machines, read_sizes, vit_gflop
from dinov2.curation.costs.stages import STAGES
from dinov2.params import InputError

ROOT = Path(__file__).parents[2]
PARAMS = ROOT / "presets" / "paper-vitg.yaml"
ONE = Machines(nodes=1, cores=10, gpus=0, workers=1)


def costs(stage: str, machines: Machines = ONE, **options: Any) -> dict[str, Cost]:
    assumed = Assumed(**options)
    found = costs_of(stage, read_sizes(PARAMS, assumed), read_rates(assumed), machines)
    return {cost.work.phase: cost for cost in found}


def test_join_is_counted_by_hand() -> None:
    join = costs("dedup", images=9e6, seeds=1e6, block_rows=1_000_000, copy_dims=512)["join, exact"].work
    assert join.flops == 1e7**2 * 512  # half of all pairs, two operations a dimension
    assert join.parts == 55
    assert join.read == 110 * 1_000_000 * 512 * 2  # each part reads two blocks of float16
    assert join.memory == 1_000_000 * 512 * 16


def test_join_grows_with_the_square_and_embedding_with_the_number() -> None:
    ratio = {"dedup": ("join, exact", 100), "embed": ("descriptors", 10), "filter": ("looks", 10)}
    for stage, (phase, times) in ratio.items():
        few, many = (
            costs(stage, images=images, seeds=1.0, evaluation=1.0, part_images=1000)[phase].hours
            for images in (1e6, 1e7)
        )
        assert many / few == pytest.approx(times, rel=1e-3)


def test_vit_has_the_operations_of_its_published_size() -> None:
    model = {"image_size_px": 224, "patch_size": 16, "dim": 768, "depth": 12, "num_registers": 0}
    assert vit_gflop(model) == pytest.approx(2 * 17.56, rel=0.01)  # ViT-B/16: 17.56 G multiplications


def test_download_holds_outcomes_of_its_hosts_and_what_comes_over_its_connections() -> None:
    hosts = costs("download", images=1.024e9, part_images=1000)["fetch"].work
    assert hosts.memory == 1e6 * 1200 + 512 * 2 * 2**20 + 50e6
    assert costs("download", images=1e6, part_images=10**6)["fetch"].work.memory == 1e6 * 2000  # rows of a block


def test_phase_of_one_part_gets_no_faster_by_more_machines() -> None:
    many = Machines(nodes=20, cores=10, gpus=8, workers=20)
    one, spread = (costs("dedup", some, images=1e9, block_rows=4 * 10**6) for some in (many._replace(nodes=1), many))
    assert spread["components"].hours == one["components"].hours
    assert one["join, exact"].hours / spread["join, exact"].hours == pytest.approx(20)
    assert spread["join, exact"].bound_by == "GPUs"
    assert spread["join, exact"].processes == 160


def test_array_has_at_most_64_elements() -> None:
    assert asked(ONE, Assumed(nodes=200)).workers == 64
    assert asked(ONE._replace(workers=5), Assumed()).workers == 5


@pytest.mark.parametrize("stage", STAGES)
def test_every_line_of_rates_says_measured_or_assumed(stage: str) -> None:
    lines = list(plan_stage(stage, PARAMS, Assumed(), ONE))
    rates = [line[15:] for line in lines[[line.startswith("rates") for line in lines].index(True) :]]
    assert rates
    assert all(re.match("measured .benchmarks/results/|assumed", line) for line in rates)


@pytest.mark.parametrize(
    ("option", "told"),
    [
        ({"images": 0.0}, "--images is 0; take a number above 0"),
        ({"gpu": "TPU"}, "--gpu is 'TPU'; take one of A100"),
        ({"peak_share": 1.5}, "--peak_share is 1.5, a share"),
    ],
)
def test_numbers_that_no_plan_can_be_made_of_are_named(option: dict[str, Any], told: str) -> None:
    with pytest.raises(InputError, match=re.escape(told)):
        read_sizes(PARAMS, Assumed(**option))


def test_docs_have_the_table_that_the_command_prints(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    text = (ROOT / "docs" / "scale.md").read_text()
    (command,) = re.findall(r"^    python -m dinov2\.curation\.costs (.*)$", text, re.MULTILINE)
    assert main(shlex.split(command)) == 0
    printed = text.partition("<!-- printed -->\n")[2].partition("<!-- end -->")[0]
    assert printed == capsys.readouterr().out, "run the command that docs/scale.md names and put its answer there"
