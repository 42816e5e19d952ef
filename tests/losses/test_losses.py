"""Student losses: formulas, duplicates, edges."""

import math

import pytest
import torch

from dinov2.losses.dino import cross_entropy, dino_local_loss, num_dino_terms
from dinov2.losses.ibot import ibot_loss
from dinov2.losses.koleo import koleo_loss


def test_cross_entropy_is_the_formula_with_its_gradient() -> None:
    torch.manual_seed(0)
    targets, logits = torch.rand(5, 7), torch.randn(5, 7, requires_grad=True)
    expected = -(targets * torch.log_softmax(logits / 0.1, dim=-1)).sum(-1)
    (wanted,) = torch.autograd.grad(expected.sum(), logits)
    ours = cross_entropy(targets, logits, temperature=0.1)
    (gradient,) = torch.autograd.grad(ours.sum(), logits)
    torch.testing.assert_close(ours, expected)
    torch.testing.assert_close(gradient, wanted, rtol=1e-5, atol=1e-5)


def test_uniform_student_is_at_the_chance_value() -> None:
    targets = torch.softmax(torch.randn(2, 4, 1024), dim=-1)
    loss = dino_local_loss(targets, torch.zeros(8, 4, 1024), temperature=0.1) / num_dino_terms(8)
    assert loss.item() == pytest.approx(16 / 18 * math.log(1024), rel=1e-5)


def test_ibot_without_masked_patches_is_zero() -> None:
    empty = torch.zeros(0, 8)
    assert ibot_loss(empty, empty, torch.zeros(0), num_crops=4, temperature=0.1).item() == 0


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
