"""The join: against the plain definition over tile borders, and the same pairs whatever computes the products."""

import numpy as np
import pytest
from numpy.typing import NDArray

from dinov2.curation.dedup import join, products
from dinov2.curation.dedup.join import EXACT, Screen, pairs_above
from dinov2.curation.dedup.products import Engine, NumpyEngine, TorchEngine, engine
from dinov2.curation.dedup.rotation import encode, random_frame, score_for
from dinov2.params import InputError

PRECISIONS: tuple[products.Precision, ...] = ("fp32", "bf16")


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(NumpyEngine, "tile", (7, 40))
    monkeypatch.setattr(products, "CPU_TILE", (9, 33))
    monkeypatch.setattr(join, "VERIFY_ROWS", 11)


def with_copies(num: int, dims: int, seed: int) -> NDArray[np.float32]:
    """Random directions; a third of the rows have a cosine of 0.5 to 1 with one of the others."""
    rng = np.random.default_rng(seed)
    vectors = rng.standard_normal((num, dims))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    cosine = rng.uniform(0.5, 1, (num // 3, 1))
    noise = rng.standard_normal((num // 3, dims)) / np.sqrt(dims)
    vectors[: num // 3] = cosine * vectors[num // 3 : 2 * (num // 3)] + np.sqrt(1 - cosine**2) * noise
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def rotation(dims: int, min_cosine: float, miss: float = 0.01) -> Screen:
    return Screen(random_frame(dims, 32, 0), score_for(min_cosine, dims, 32, miss))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_pairs_among_themselves_come_once_and_all(precision: products.Precision) -> None:
    vectors = with_copies(130, 16, 6)
    pairs = pairs_above(vectors, None, 0.7, EXACT, engine("cpu", precision))
    everything = vectors.astype(np.float64) @ vectors.astype(np.float64).T
    first, second = np.nonzero(np.triu(everything >= 0.7, k=1))
    assert len(first) > 20
    np.testing.assert_array_equal(pairs.first, first)
    np.testing.assert_array_equal(pairs.second, second)
    np.testing.assert_allclose(pairs.cosine, everything[first, second], atol=1e-6)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_pairs_of_two_sets(precision: products.Precision) -> None:
    vectors, others = with_copies(90, 16, 7), with_copies(70, 16, 8)
    others[11] = vectors[83]
    pairs = pairs_above(vectors, others, 0.999, EXACT, engine("cpu", precision))
    assert list(zip(pairs.first, pairs.second, strict=True)) == [(83, 11)]
    assert pairs.cosine[0] == pytest.approx(1, abs=1e-6)


def test_pairs_of_nothing_are_none() -> None:
    assert len(pairs_above(np.empty((0, 4), np.float32), None, 0.5, EXACT, NumpyEngine()).first) == 0


def test_a_screen_passes_the_same_pairs_whatever_computes_it() -> None:
    vectors, screen = with_copies(400, 64, 0), rotation(64, 0.5, miss=0.2)
    found = [
        pairs_above(vectors, None, 0.5, screen, place)
        for place in (NumpyEngine(), TorchEngine("cpu", "bf16"), TorchEngine("cpu", "fp32"))
    ]
    whole = pairs_above(vectors, None, 0.5, EXACT, NumpyEngine())
    assert 50 < len(found[0].first) < len(whole.first)
    for other in found[1:]:
        for one, same in zip(found[0], other, strict=True):
            np.testing.assert_array_equal(one, same)
    assert set(zip(*found[0], strict=True)) < set(zip(*whole, strict=True))  # cosines and all


def test_tiles_with_many_candidates_give_the_same_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors, screen = with_copies(200, 64, 1), rotation(64, 0.6, miss=0.2)
    expected = pairs_above(vectors, None, 0.6, screen, NumpyEngine())
    for dims in (1, 2**40):  # every tile is computed whole, or none is
        monkeypatch.setattr(products, "VERIFY_DIMS", dims)
        for one, same in zip(expected, pairs_above(vectors, None, 0.6, screen, NumpyEngine()), strict=True):
            np.testing.assert_array_equal(one, same)


def test_more_pairs_than_memory_holds_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(join, "MAX_PAIRS", 100)
    with pytest.raises(InputError, match=r"more than 100 pairs at or above 0\.6 in one part"):
        pairs_above(np.ones((30, 1), np.float32), None, 0.6, EXACT, NumpyEngine())


def test_a_threshold_below_the_rounding_misses_nothing() -> None:
    vectors = with_copies(60, 16, 3)
    whole = pairs_above(vectors, None, 0.001, EXACT, NumpyEngine())
    for one, same in zip(whole, pairs_above(vectors, None, 0.001, EXACT, TorchEngine("cpu", "bf16")), strict=True):
        np.testing.assert_array_equal(one, same)


def test_rows_of_zeros_are_in_no_pair() -> None:
    vectors = with_copies(60, 64, 2)
    vectors[[0, 1, 30]] = 0
    for screen in (EXACT, rotation(64, 0.6)):
        pairs = pairs_above(vectors, None, 0.6, screen, NumpyEngine())
        assert not np.isin([0, 1, 30], [pairs.first, pairs.second]).any()


@pytest.mark.parametrize("directions", [32, 96])
def test_score_is_reached_by_the_share_of_pairs_it_was_made_for(directions: int) -> None:
    rng = np.random.default_rng(0)
    left = rng.standard_normal((20000, 256))
    noise = rng.standard_normal((20000, 256))
    left /= np.linalg.norm(left, axis=1, keepdims=True)
    noise -= (noise * left).sum(axis=1, keepdims=True) * left
    noise /= np.linalg.norm(noise, axis=1, keepdims=True)
    right = 0.6 * left + 0.8 * noise
    frame, score = random_frame(256, directions, 3), score_for(0.6, 256, directions, 0.05)
    reached = (encode(left, frame) * encode(right, frame)).sum(axis=1) >= score
    assert 0.945 < reached.mean() < 0.965  # the score is rounded down, by 1.5 % at most


def test_all_directions_lose_only_the_rounding() -> None:
    vectors = with_copies(200, 32, 5)
    screen = Screen(random_frame(32, 32, 0), score_for(0.6, 32, 32, 0.01))
    whole = pairs_above(vectors, None, 0.62, EXACT, NumpyEngine())
    assert len(whole.first) > 20
    for one, same in zip(whole, pairs_above(vectors, None, 0.62, screen, NumpyEngine()), strict=True):
        np.testing.assert_array_equal(one, same)


def test_cuda_that_is_not_there_is_refused() -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("it is")
    with pytest.raises(InputError, match="no CUDA device"):
        engine("cuda", "bf16")


@pytest.mark.parametrize(("num_left", "num_right"), [(64, 700), (3, 128), (10, 100), (1, 1)])
def test_what_a_gpu_looks_at_in_groups_is_what_reaches_the_bound(
    num_left: int, num_right: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    monkeypatch.setattr(products, "STRIP", 2 * products.GROUP)
    monkeypatch.setattr(products, "GROUPS_AT_ONCE", 7)
    monkeypatch.setattr(products, "PLACES_AT_ONCE", 7)
    whole = torch.from_numpy(with_copies(num_left + num_right, 64, 0))
    left, right = whole[:num_left], whole[num_left:]
    for score in (0.2, 0.3, 0.6, 1.1):
        places = products.grouped_hits(left, right, torch.tensor(score))
        expected = np.flatnonzero((left @ right.T).numpy() >= np.float32(score))
        np.testing.assert_array_equal(products.in_order(places), expected)
        narrowed = products.narrowed_by_rows(places, left, right, 0.4)
        nearer = np.flatnonzero((left @ right.T).numpy() >= np.float32(max(score, 0.4)))
        np.testing.assert_array_equal(products.in_order(narrowed), nearer)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", PRECISIONS)
def test_cuda_finds_the_pairs_of_the_cpu(precision: products.Precision) -> None:
    cuda: Engine = engine("cuda", precision)
    vectors = with_copies(5000, 128, 0)
    for screen in (EXACT, Screen(random_frame(128, 64, 0), score_for(0.6, 128, 64, 0.05))):
        expected = pairs_above(vectors, None, 0.6, screen, NumpyEngine())
        for one, same in zip(expected, pairs_above(vectors, None, 0.6, screen, cuda), strict=True):
            np.testing.assert_array_equal(one, same)
