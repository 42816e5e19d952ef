"""Counted FLOPs against torch's own counter on a real step, and against the dossier's table of the paper's networks."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from dinov2.losses import prototypes
from dinov2.params import read_yaml, validate
from dinov2.train import flops
from dinov2.train.distill import DistilledStudent, Distiller
from dinov2.train.flops import OURS, REFERENCE, Counting, distillation_flops_per_step, flops_per_step
from dinov2.train.objective import Batch, build_network
from dinov2.train.params import Architecture
from dinov2.train.student_teacher import StudentTeacher
from dinov2.train.workload import workload
from tasks.pretrain import PretrainParams

ROOT = Path(__file__).parents[2]
TINY: Any = read_yaml(Path(__file__).parents[1] / "tiny.yaml")


def training(**changes: Any) -> tuple[PretrainParams, Architecture]:
    """Params of a small training; `changes` go to the model, or with a known name to the recipe."""
    section = TINY["pretrain"]
    model = {key: changes.pop(key) for key in list(changes) if key in section["model"]}
    values = {**section, **changes, "model": {**section["model"], **model}}
    params = validate(PretrainParams, values, where="pretrain")
    return params, Architecture(model=params.model, dino_head=params.dino_head, ibot_head=params.ibot_head)


def random_batch(params: PretrainParams) -> Batch:
    """A step's crops, with as many masked patches as are expected."""
    num_images, crops = params.batch_size, params.crops
    masks = torch.zeros(2 * num_images, (crops.global_size_px // params.model.patch_size) ** 2, dtype=torch.bool)
    masks.view(-1)[: workload(params, params.model, num_images).masked_patches] = True
    return Batch(
        torch.randn(2, num_images, 3, crops.global_size_px, crops.global_size_px),
        torch.randn(crops.num_local, num_images, 3, crops.local_size_px, crops.local_size_px),
        masks,
        max_masked=0,
    )


def counted(params: PretrainParams, architecture: Architecture, recompute: Any) -> int:
    """FLOPs of forward and backward as torch counts them, on as many masked patches as are expected."""
    pair = StudentTeacher(
        architecture.model, architecture.dino_head, architecture.ibot_head, params.loss,
        group_size=params.group_size, attention="sdpa", recompute=recompute,
    ).train()  # fmt: skip
    num_images = params.batch_size
    batch = random_batch(params)
    # the backend that is made of plain products, whose backward does not make the scores again
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        (targets,) = pair.targets([batch], 0.05)
        total, _ = pair.losses(batch, targets, group_seeds=list(range(num_images // params.group_size)))
        total.backward()
    return counter.get_total_flops()


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"drop_path": 0.4, "ffn": "swiglu", "num_registers": 2, "group_size": 4, "depth": 3},
        {"ibot_head": None},
        {"recompute": "block"},
    ],
    ids=str,
)
@pytest.mark.parametrize("kept_bytes", [0, 2**28])
def test_flops_of_a_step_are_what_torch_counts(
    changes: dict[str, Any], kept_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flops, "KEPT_LOGITS_BYTES", kept_bytes)
    monkeypatch.setattr(prototypes, "KEPT_BYTES", kept_bytes)
    others = dict(changes)
    recompute = others.pop("recompute", "none")
    params, architecture = training(**others)
    expected = flops_per_step(params, architecture, num_processes=1, counting=OURS._replace(recompute=recompute))
    work = workload(params, params.model, params.batch_size)
    scores = sum(2 * shape.samples * shape.length**2 for shape in work.kept) * params.model.dim * params.model.depth
    assert counted(params, architecture, recompute) == expected.executed - scores


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("kept_bytes", [0, 2**28])
def test_flops_of_a_distillation_are_what_torch_counts(
    tied: bool, kept_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flops, "KEPT_LOGITS_BYTES", kept_bytes)
    monkeypatch.setattr(prototypes, "KEPT_BYTES", kept_bytes)
    params, teacher = training(**({"ibot_head": None} if tied else {}), depth=3, drop_path=0.4)
    smaller = [{"dim": 24, "heads": 2, "drop_path": 0.0}, {"depth": 1, "drop_path": 0.0, "num_registers": 1}]
    students = [
        teacher.model_copy(update={"model": teacher.model.model_copy(update=changes)}) for changes in smaller
    ]
    distiller = Distiller(
        build_network(teacher.model, teacher.dino_head, teacher.ibot_head), params.loss, group_size=params.group_size
    ).train()
    nets = [
        DistilledStudent(student.model, student.dino_head, student.ibot_head, attention="sdpa").train()
        for student in students
    ]
    batch = random_batch(params)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        (targets,) = distiller.targets([batch], 0.05)
        for net in nets:
            total, _ = distiller.losses(net, batch, targets)
            total.backward()
    expected = distillation_flops_per_step(params, teacher, students, num_processes=1)
    scores = 0
    for model in (student.model for student in students):
        kept = workload(params, model, params.batch_size).kept
        scores += sum(2 * shape.samples * shape.length**2 for shape in kept) * model.dim * model.depth
    assert counter.get_total_flops() == expected.executed - scores


def test_constants_are_the_losses_own() -> None:
    assert flops.KEPT_LOGITS_BYTES == prototypes.KEPT_BYTES


@pytest.mark.parametrize(
    ("preset", "images", "tera"), [("paper-vitl", 32, 44.6), ("paper-vitl", 64, 89.2), ("paper-vitg", 32, 161.0)]
)
def test_flops_of_the_papers_networks(preset: str, images: int, tera: float) -> None:
    """The dossier's table has both bottlenecks at 384 and counts the scores that attention's backward makes again."""
    section: Any = read_yaml(ROOT / "presets" / f"{preset}.yaml")["pretrain"]
    head = section["dino_head"]
    params = validate(
        PretrainParams, {**section, "ibot_head": head, "batch_size": images, "group_size": images}, where="pretrain"
    )
    architecture = Architecture(model=params.model, dino_head=params.dino_head, ibot_head=params.ibot_head)
    whole = flops_per_step(params, architecture, num_processes=1, counting=REFERENCE)
    assert whole.executed / 1e12 == pytest.approx(tera, rel=0.01)
    ours = flops_per_step(params, architecture, num_processes=1)
    assert 0.95 * whole.total < ours.total < whole.total
    assert ours.heads == whole.heads


def test_flops_grow_only_by_what_is_computed_again() -> None:
    params, architecture = training()
    kept = flops_per_step(params, architecture, num_processes=1)
    again = flops_per_step(params, architecture, num_processes=1, counting=Counting("needed", "blocks", "block"))
    assert again.total == kept.total
    assert 0 < again.executed - kept.executed <= kept.student_forward
