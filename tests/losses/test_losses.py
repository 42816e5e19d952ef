"""Student losses: formulas, duplicates, edges."""

import math

import pytest
import torch
from torch import Tensor

from dinov2.losses import prototypes as blocks
from dinov2.losses.centering import Assignment, sinkhorn_knopp
from dinov2.losses.cross_entropy import Student
from dinov2.losses.dino import dino_loss, num_dino_terms
from dinov2.losses.ibot import ibot_loss
from dinov2.losses.koleo import koleo_loss
from dinov2.losses.prototypes import Prototypes


def prototypes(num: int, dim: int = 6) -> Prototypes:
    return Prototypes(torch.randn(num, dim), 0.5 + torch.rand(num, 1))


def vectors(*shape: int) -> Tensor:
    return torch.nn.functional.normalize(torch.randn(*shape), dim=-1)


def assignment(*shape: int, num: int) -> Assignment:
    """Of views x samples; targets far from uniform."""
    flat = vectors(math.prod(shape), 6)
    return sinkhorn_knopp(flat, prototypes(num), temperature=0.05, num_iterations=3).rows(shape, 0, shape[1])


def logits_of(student: Student) -> Tensor:
    directions, factors = student.prototypes
    return student.features @ (directions * (factors / directions.norm(dim=1, keepdim=True))).T


@pytest.mark.parametrize("block_elements", [20, 2**18])
@pytest.mark.parametrize("kept_bytes", [0, 2**28])
def test_dino_loss_is_the_formula_with_its_gradient(
    block_elements: int, kept_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(blocks.BLOCK_ELEMENTS, "cpu", block_elements)
    monkeypatch.setitem(blocks.LEAST_WIDTH, "cpu", 1)
    monkeypatch.setattr(blocks, "KEPT_BYTES", kept_bytes)
    torch.manual_seed(0)
    targets = assignment(2, 4, num=23)
    learnt = [tensor.requires_grad_() for tensor in (vectors(5, 4, 6), *prototypes(23))]
    student = Student(learnt[0], Prototypes(*learnt[1:]), 0.1)
    loss, local, between_globals = dino_loss(targets, student)
    ours = torch.autograd.grad(3 * loss, learnt)

    log_p = torch.log_softmax(logits_of(student) / 0.1, dim=-1)
    asked = targets.targets()
    wanted_local = -(asked.sum(0) * log_p[2:]).sum(-1).mean(1).sum() / num_dino_terms(3)
    wanted_global = -(asked.flip(0) * log_p[:2]).sum(-1).mean(1).sum() / num_dino_terms(3)
    wanted = torch.autograd.grad(3 * (wanted_local + wanted_global), learnt)
    torch.testing.assert_close(torch.stack([local, between_globals]), torch.stack([wanted_local, wanted_global]))
    torch.testing.assert_close(loss, wanted_local + wanted_global)
    for left, right in zip(ours, wanted, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-5, atol=1e-6)


def test_ibot_loss_is_the_formula_with_its_gradient() -> None:
    torch.manual_seed(0)
    targets, weights = assignment(1, 7, num=23), torch.rand(7)
    learnt = [tensor.requires_grad_() for tensor in (vectors(1, 7, 6), *prototypes(23))]
    student = Student(learnt[0], Prototypes(*learnt[1:]), 0.1)
    loss = ibot_loss(targets, student, weights, num_crops=4)
    wanted = -((targets.targets() * torch.log_softmax(logits_of(student) / 0.1, dim=-1)).sum(-1) * weights).sum() / 4
    torch.testing.assert_close(loss, wanted)
    for left, right in zip(torch.autograd.grad(loss, learnt), torch.autograd.grad(wanted, learnt), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-5, atol=1e-6)


def test_gradient_of_a_cross_entropy_is_handed_out_once() -> None:
    features = vectors(1, 3, 6).requires_grad_()
    student = Student(features, prototypes(8), 0.1)
    loss = ibot_loss(assignment(1, 3, num=8), student, torch.ones(3), num_crops=2)
    torch.autograd.grad(loss, features, retain_graph=True)
    with pytest.raises(AssertionError, match="once"):
        torch.autograd.grad(loss, features)


def test_uniform_student_is_at_the_chance_value() -> None:
    student = Student(vectors(10, 4, 6), Prototypes(torch.ones(1024, 6), torch.zeros(1024, 1)), 0.1)
    _, local, between_globals = dino_loss(assignment(2, 4, num=1024), student)
    assert local.item() == pytest.approx(16 / 18 * math.log(1024), rel=1e-5)
    assert between_globals.item() == pytest.approx(2 / 18 * math.log(1024), rel=1e-5)


def test_ibot_without_masked_patches_is_zero() -> None:
    features = torch.zeros(1, 0, 6, requires_grad=True)
    loss = ibot_loss(assignment(1, 0, num=8), Student(features, prototypes(8), 0.1), torch.zeros(0), num_crops=4)
    loss.backward()
    assert loss.item() == 0


def test_koleo_of_duplicates_is_finite_and_keeps_gradients_small() -> None:
    torch.manual_seed(0)
    features = torch.randn(6, 16)
    features[1] = features[2] = features[0]  # three: the gradients of two would cancel
    features.requires_grad_()
    loss = koleo_loss(features)
    loss.backward()
    assert loss.isfinite()
    assert features.grad is not None
    assert features.grad.norm() < 1
    assert features.grad[3:].norm(dim=1).min() > 0


def test_koleo_falls_as_features_spread() -> None:
    torch.manual_seed(0)
    features = torch.randn(8, 4, requires_grad=True)
    before = koleo_loss(features)
    (gradient,) = torch.autograd.grad(before, features)
    assert koleo_loss(features - 0.01 * gradient) < before


def test_koleo_neighbours_stay_within_their_group() -> None:
    torch.manual_seed(0)
    group = torch.randn(4, 8)
    twice = koleo_loss(torch.stack([group, group]))  # each feature's copy stands in the other group
    torch.testing.assert_close(twice, koleo_loss(group).expand(2))


def test_koleo_of_random_features_is_the_references() -> None:
    torch.manual_seed(0)
    values = torch.stack([koleo_loss(torch.randn(32, 1024)) for _ in range(20)])
    assert values.mean().item() == pytest.approx(-0.31, abs=0.01)


def test_koleo_is_fp32_under_autocast() -> None:
    torch.manual_seed(0)
    features = torch.randn(8, 64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = koleo_loss(features)
    assert torch.equal(inside, koleo_loss(features))
