"""Targets: masses, extreme logits, several processes."""

import os
from pathlib import Path

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import start_processes

from dinov2.losses.centering import centered_softmax, sinkhorn_knopp, update_center
from dinov2.losses.prototypes import Prototypes


def one_hot(num: int) -> Prototypes:
    """Prototypes whose logits are the features themselves."""
    return Prototypes(torch.eye(num), torch.ones(num, 1))


def sinkhorn(logits: torch.Tensor, temperature: float) -> torch.Tensor:
    """Targets of some logits after three iterations."""
    prototypes = one_hot(logits.shape[1])
    return sinkhorn_knopp(
        logits, prototypes, temperature=temperature, num_iterations=3, most_samples=16
    ).targets()


def test_sinkhorn_spreads_samples_over_prototypes() -> None:
    torch.manual_seed(0)
    logits = torch.randn(256, 16)
    logits[:, 3] += 3  # a prototype that all samples like
    targets = sinkhorn(logits, 0.5)
    torch.testing.assert_close(targets.sum(1), torch.ones(256))
    assert (targets.sum(0) / 16 - 1).abs().max() < 0.05
    assert torch.softmax(logits / 0.5, dim=1).sum(0)[3] > 8 * 16  # which a plain softmax does not do


def test_sinkhorn_of_huge_logits_is_finite() -> None:
    torch.manual_seed(0)
    logits = torch.randn(12, 8) * 1e4
    logits[0] = -1e4
    logits[1, 2] = 1e4
    targets = sinkhorn(logits, 0.04)
    assert targets.isfinite().all()
    torch.testing.assert_close(targets.sum(1), torch.ones(12))


def test_sinkhorn_of_one_sample_is_uniform() -> None:
    targets = sinkhorn(torch.randn(1, 8), 0.04)
    torch.testing.assert_close(targets, torch.full((1, 8), 1 / 8))


def test_center_follows_the_mean_and_flattens_targets() -> None:
    logits = torch.randn(64, 8) + torch.arange(8.0)
    center = torch.zeros(1, 8)
    for _ in range(100):
        update_center(center, logits, one_hot(8), momentum=0.9)
    torch.testing.assert_close(center[0], logits.mean(0), rtol=1e-3, atol=1e-3)
    favourite = centered_softmax(logits, one_hot(8), torch.zeros(1, 8), temperature=0.1).targets().argmax(1)
    balanced = centered_softmax(logits, one_hot(8), center, temperature=0.1).targets().argmax(1)
    assert favourite.bincount(minlength=8).max() > 2 * balanced.bincount(minlength=8).max()


def _one_of_two(rank: int, folder: str) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    logits = torch.load(f"{folder}/logits.pt")
    results = {}
    for name, cut in (("unequal", 5), ("empty", 0)):
        mine = logits[:cut] if rank == 0 else logits[cut:]
        center = torch.zeros(1, logits.shape[1])
        targets = sinkhorn(mine, 0.1)
        update_center(center, mine, one_hot(8), momentum=0.9)
        results[name] = (targets, center)
    torch.save(results, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_give_the_targets_of_one(tmp_path: Path) -> None:
    torch.manual_seed(0)
    logits = torch.randn(16, 8)
    torch.save(logits, tmp_path / "logits.pt")
    start_processes(_one_of_two, args=(str(tmp_path),), nprocs=2, start_method="spawn")
    first, second = torch.load(tmp_path / "0.pt"), torch.load(tmp_path / "1.pt")
    whole = sinkhorn(logits, 0.1)
    center = torch.zeros(1, 8)
    update_center(center, logits, one_hot(8), momentum=0.9)
    for name in ("unequal", "empty"):
        torch.testing.assert_close(torch.cat([first[name][0], second[name][0]]), whole, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(first[name][1], center)
        torch.testing.assert_close(second[name][1], center)
