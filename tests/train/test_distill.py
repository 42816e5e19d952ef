"""Distillation: what its targets cover, what stays frozen, what may not be combined."""

import pytest
import torch

from dinov2.models.params import HeadParams, ViTParams
from dinov2.params import InputError
from dinov2.train.distill import DistilledStudent, Distiller
from dinov2.train.objective import Batch, build_network
from dinov2.train.params import LossParams

TEACHER = ViTParams(
    patch_size=14,
    dim=32,
    depth=2,
    heads=2,
    ffn="swiglu",
    num_registers=2,
    layerscale=1.0,
    drop_path=0.5,
    image_size_px=56,
    interpolate_offset=0.0,
    interpolate_antialias=True,
)
STUDENT = TEACHER.model_copy(update={"dim": 16, "ffn": "mlp", "num_registers": 0, "drop_path": 0.0})
HEAD = HeadParams(num_prototypes=24, hidden_dim=16, bottleneck_dim=8, num_layers=2)
IBOT_HEAD = HEAD.model_copy(update={"num_prototypes": 40})
LOSS = LossParams(
    dino_weight=1.0,
    ibot_weight=1.0,
    koleo_weight=0.1,
    centering="sinkhorn",
    sinkhorn_iterations=3,
    center_momentum=0.9,
    student_temperature=0.1,
)


def student(model: ViTParams = STUDENT, dino_head: HeadParams = HEAD) -> DistilledStudent:
    torch.manual_seed(1)
    return DistilledStudent(model, dino_head, IBOT_HEAD, attention="sdpa")


@pytest.fixture
def distiller() -> Distiller:
    torch.manual_seed(0)
    return Distiller(build_network(TEACHER, HEAD, IBOT_HEAD), LOSS, group_size=4).train()


@pytest.fixture
def batch() -> Batch:
    torch.manual_seed(2)
    masks = torch.rand(8, 16) < 0.3
    return Batch(torch.randn(2, 4, 3, 56, 56), torch.randn(2, 4, 3, 28, 28), masks, max_masked=0)


def test_targets_cover_all_patches_of_both_global_crops(distiller: Distiller, batch: Batch) -> None:
    (targets,) = distiller.targets([batch], 0.05)
    assert targets.cls is not None
    assert targets.patches is not None
    assert targets.cls.targets().shape == (2, 4, 24)
    assert targets.patches.targets().shape == (1, 2 * 4 * 16, 40)
    assert targets.rows.tolist() == list(range(2 * 4 * 16))
    assert targets.weights.eq(1 / 16).all()


def test_masks_change_nothing(distiller: Distiller, batch: Batch) -> None:
    net = student().train()
    losses = distiller.losses(net, batch, *distiller.targets([batch], 0.05))
    bare = batch._replace(masks=torch.zeros_like(batch.masks))
    assert losses == distiller.losses(net, bare, *distiller.targets([bare], 0.05))


def test_students_learn_and_the_teacher_stays(distiller: Distiller, batch: Batch) -> None:
    before = {name: value.clone() for name, value in distiller.state_dict().items()}
    (targets,) = distiller.targets([batch], 0.05)
    for net in (student(), student(STUDENT.model_copy(update={"dim": 24}))):
        distiller.check_student(net)
        optimizer = torch.optim.SGD(net.student.parameters(), lr=0.05)
        totals = []
        for _ in range(10):
            total, _ = distiller.losses(net.train(), batch, targets)
            optimizer.zero_grad()
            total.backward()
            optimizer.step()
            totals.append(total.item())
        assert totals[-1] < totals[0] - 0.01
    assert all(torch.equal(value, before[name]) for name, value in distiller.state_dict().items())
    assert all(parameter.grad is None for parameter in distiller.parameters())


def test_average_follows_and_feeds_nothing_back(distiller: Distiller, batch: Batch) -> None:
    net = student().train()
    (targets,) = distiller.targets([batch], 0.05)
    losses = distiller.losses(net, batch, targets)
    name = "backbone.norm.weight"
    with torch.no_grad():
        net.average.get_parameter(name).fill_(5.0)
    assert losses == distiller.losses(net, batch, targets)
    net.update_average(0.75)
    torch.testing.assert_close(net.average.get_parameter(name), torch.full((16,), 0.75 * 5 + 0.25))
    assert not net.average.training


def test_student_with_stochastic_depth_is_refused() -> None:
    with pytest.raises(InputError, match=r"drop_path 0\.5"):
        student(TEACHER)


def test_student_that_can_not_answer_is_refused(distiller: Distiller) -> None:
    with pytest.raises(InputError, match="dino_head has 12 prototypes but its teacher's 24"):
        distiller.check_student(student(dino_head=HEAD.model_copy(update={"num_prototypes": 12})))
    with pytest.raises(InputError, match="patch_size is 28"):
        distiller.check_student(student(STUDENT.model_copy(update={"patch_size": 28})))
    with pytest.raises(InputError, match="ibot_head"):
        distiller.check_student(DistilledStudent(STUDENT, HEAD, None, attention="sdpa"))
