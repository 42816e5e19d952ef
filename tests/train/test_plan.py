"""A training's plan: what it says of the paper's presets, and the sharding it rehearses."""

from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from dinov2.gpus import peak_tflops
from dinov2.models.params import HeadParams, released_params
from dinov2.params import InputError, read_yaml, validate
from dinov2.train.costs import Networks
from dinov2.train.objective import build_network, local_part
from dinov2.train.params import Architecture, EfficiencyParams
from dinov2.train.plan import Assumptions, Launched, plan_training
from dinov2.train.rehearse import build_sharded, rehearse_holdings
from tasks.pretrain import PretrainParams

ROOT = Path(__file__).parents[2]
TINY: Any = read_yaml(Path(__file__).parents[1] / "tiny.yaml")
SMALL = HeadParams(num_prototypes=97, hidden_dim=30, bottleneck_dim=7, num_layers=3)
EFFICIENCY = validate(EfficiencyParams, TINY["pretrain"]["efficiency"], where="efficiency")
DEFAULT = Assumptions()


def networks(name: str) -> Architecture:
    """A released architecture at 224 px with small heads of odd sizes."""
    model = released_params(name).model_copy(update={"image_size_px": 224})
    return Architecture(model=model, dino_head=SMALL, ibot_head=SMALL)


def recipe_of(preset: str, **changes: Any) -> tuple[PretrainParams, Architecture]:
    section: Any = read_yaml(ROOT / "presets" / f"{preset}.yaml")["pretrain"]
    efficiency = {**section["efficiency"], **changes.pop("efficiency", {})}
    params = validate(PretrainParams, {**section, **changes, "efficiency": efficiency}, where="pretrain")
    return params, Architecture(model=params.model, dino_head=params.dino_head, ibot_head=params.ibot_head)


def lines(preset: str = "paper-vitg", *, assumed: Assumptions = DEFAULT, **changes: Any) -> list[str]:
    params, architecture = recipe_of(preset, **changes)
    return list(plan_training("pretrain", params, Networks(architecture), Launched(32, 8, 4320), assumed))


def line(plan: list[str], start: str) -> str:
    (found,) = (each.strip() for each in plan if each.strip().startswith(start))
    return found


@pytest.mark.parametrize(
    ("name", "backbone"),
    [("vit_small", 21_629_184), ("vit_large", 303_228_928), ("vit_giant2", 1_134_771_200)],
)
def test_whole_networks_have_the_reference_s_parameters(name: str, backbone: int) -> None:
    architecture = networks(name)
    holdings = rehearse_holdings(architecture, EFFICIENCY, rank=0, num_processes=1)
    assert holdings.local - holdings.heads == backbone
    assert holdings.block * architecture.model.depth + holdings.embeddings == backbone


def test_the_paper_s_vit_l_has_swiglu_from_scratch() -> None:
    params, architecture = recipe_of("paper-vitl")
    holdings = rehearse_holdings(architecture, params.efficiency, rank=0, num_processes=1)
    assert holdings.local - holdings.heads == 303_655_168


@pytest.mark.parametrize("num_processes", [1, 3, 8])
def test_shards_of_all_ranks_add_up_to_the_whole(num_processes: int) -> None:
    architecture = networks("vit_small")
    local = [
        rehearse_holdings(architecture, EFFICIENCY, rank=rank, num_processes=num_processes).local
        for rank in range(num_processes)
    ]
    whole = sum(parameter.numel() for parameter in build_network(architecture.model, SMALL, SMALL).parameters())
    assert sum(local) == whole
    assert max(local) == local[0]
    assert min(local) == local[-1]


def test_shards_of_256_ranks_add_up_to_the_whole_of_vit_g() -> None:
    architecture = networks("vit_giant2")
    first = build_sharded(architecture, EFFICIENCY, rank=0, num_processes=256)
    last = build_sharded(architecture, EFFICIENCY, rank=255, num_processes=256)
    for (name, parameter), (_, end) in zip(first.named_parameters(), last.named_parameters(), strict=True):
        rows = -(-len(parameter) // 256)
        sizes = [len(range(len(parameter))[rank * rows : (rank + 1) * rows]) for rank in range(256)]
        assert sum(sizes) == len(parameter)
        assert (len(local_part(parameter)), len(local_part(end))) == (sizes[0], sizes[-1]), name
        assert parameter.device.type == "meta"
    assert not dist.is_initialized()


def test_shards_of_a_node_do_not_depend_on_how_many_nodes_there_are() -> None:
    architecture, node = networks("vit_small"), EFFICIENCY.model_copy(update={"shard_processes": 8})
    alone = rehearse_holdings(architecture, EFFICIENCY, rank=0, num_processes=8)
    assert rehearse_holdings(architecture, node, rank=0, num_processes=256) == alone


def test_plan_of_the_paper_s_vit_g_says_what_three_days_need() -> None:
    plan = lines()
    assert "625,000 steps of 3,072 images: 1,920,000,000 images" in line(plan, "run")
    assert "914 in the student and 514 in the teacher" in line(plan, "tokens")
    assert line(plan, "processes") == "processes   256 (32 nodes of 8 GPUs)"
    assert line(plan, "batch") == "batch       12 images a process, 12 at a time, in groups of 12"
    assert "1,234,919,040 parameters" in line(plan, "networks")
    assert "19.8 GB every 2,500 steps" in line(plan, "checkpoint")  # 16 bytes a parameter
    assert "MFU of 0.4" in line(plan, "time")
    assert "9.3 h short: 2 jobs" in line(plan, "A100")
    assert line(plan, "H100").endswith("fits                     79 GiB: fits")


def test_plan_at_a_higher_mfu_needs_less_time() -> None:
    assert "short" not in line(lines(assumed=Assumptions(mfu=0.5)), "A100").split("GiB:")[0]


def test_plan_of_too_large_a_batch_names_the_recomputation_that_fits() -> None:
    plan = lines(batch_size=256 * 96, assumed=Assumptions(processes=256))
    assert "GiB short; recompute: block fits" in line(plan, "H100")
    assert line(plan, "H200").endswith("GiB: fits")


@pytest.mark.parametrize(
    ("changes", "assumed", "told"),
    [
        ({}, Assumptions(processes=24 * 1000), "batch_size 3072 does not divide into 24000 processes of whole groups"),
        ({"efficiency": {"num_micro_batches": 2}}, Assumptions(), "256 processes with 2 micro-batches each of whole"),
        ({}, Assumptions(processes=12), "shard_processes is 8, which does not divide 12 processes"),
        ({}, Assumptions(mfu=0.0), "--mfu is 0.0"),
        ({}, Assumptions(processes=0), "--processes is 0"),
    ],
)
def test_plan_tells_what_training_would_refuse(changes: dict[str, Any], assumed: Assumptions, told: str) -> None:
    with pytest.raises(InputError, match=told):
        lines(assumed=assumed, **changes)


@pytest.mark.parametrize(
    ("name", "tflops"), [("NVIDIA A100-SXM4-80GB", 312), ("NVIDIA H200", 989), ("NVIDIA GeForce RTX 4090", None)]
)
def test_peak_is_found_by_the_device_s_name(name: str, tflops: int | None) -> None:
    assert peak_tflops(name) == tflops
