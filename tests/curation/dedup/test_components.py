"""Dedup: which image of a group stays, and that each removed one names who caused it."""

import numpy as np
import pytest
from numpy.typing import NDArray

from dinov2.curation.dedup.components import evaluation_contacts, group_copies, preference
from dinov2.curation.dedup.join import EXACT, Pairs, pairs_above
from dinov2.curation.dedup.products import NumpyEngine


def edges(*triples: tuple[int, int, float]) -> Pairs:
    first, second, cosine = zip(*triples, strict=True)
    return Pairs(np.array(first), np.array(second), np.array(cosine, np.float32))


def planted(num: int, copies: dict[int, int], noise: float) -> NDArray[np.float32]:
    """Random unit vectors; row `copy` is row `original` with a little noise."""
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((num, 48))
    for copy, original in copies.items():
        vectors[copy] = vectors[original] + noise * rng.standard_normal(48)
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def test_planted_copies_go_and_all_others_stay() -> None:
    copies = {10: 3, 77: 3, 150: 149, 199: 42}
    vectors = planted(200, copies, noise=0.1)
    pairs = pairs_above(vectors, None, 0.8, EXACT, NumpyEngine())
    groups = group_copies([pairs], np.arange(200), np.zeros(200, bool))
    np.testing.assert_array_equal(np.flatnonzero(~groups.keep), sorted(copies))
    for copy, original in copies.items():
        assert groups.witness[copy] == original
        assert groups.cosine[copy] == pytest.approx(vectors[copy] @ vectors[original], abs=1e-6)
    assert (groups.witness[groups.keep] == -1).all()


def test_chain_keeps_one_and_witnesses_lead_to_it() -> None:
    chain = edges((0, 1, 0.9), (1, 2, 0.9), (2, 3, 0.9), (3, 4, 0.9))
    groups = group_copies([chain], np.array([4, 3, 0, 2, 1, 5]), np.zeros(6, bool))
    np.testing.assert_array_equal(groups.keep, [False, False, True, False, False, True])
    np.testing.assert_array_equal(groups.witness, [1, 2, -1, 2, 3, -1])


def test_witness_is_the_most_similar_neighbour_one_step_nearer() -> None:
    diamond = edges((0, 1, 0.9), (0, 2, 0.9), (1, 2, 0.99), (1, 3, 0.85), (2, 3, 0.95))
    groups = group_copies([diamond], np.arange(4), np.zeros(4, bool))
    np.testing.assert_array_equal(groups.witness, [-1, 0, 0, 2])
    np.testing.assert_allclose(groups.cosine, [0, 0.9, 0.9, 0.95], atol=1e-6)


def test_component_with_an_evaluation_copy_goes_entirely() -> None:
    pairs = edges((0, 1, 0.9), (1, 2, 0.9), (3, 4, 0.9))
    groups = group_copies([pairs], np.arange(5), np.array([False, True, False, False, False]))
    np.testing.assert_array_equal(groups.keep, [False, False, False, True, False])
    np.testing.assert_array_equal(groups.witness, [1, -1, 1, -1, 3])


def test_evaluation_contacts_name_the_most_similar_image() -> None:
    contacts = evaluation_contacts(edges((2, 0, 0.8), (2, 1, 0.9), (2, 3, 0.9), (4, 2, 0.7)), 5)
    np.testing.assert_array_equal(contacts.witness, [-1, -1, 1, -1, 2])
    np.testing.assert_allclose(contacts.cosine, [0, 0, 0.9, 0, 0.7], atol=1e-6)


def test_preference_is_seed_then_area_then_id() -> None:
    is_seed = np.array([False, False, True, False, True])
    rank = preference(is_seed, np.array([900, 400, 100, 900, 200]), ["b", "c", "d", "a", "e"])
    np.testing.assert_array_equal(np.argsort(rank), [4, 2, 3, 0, 1])


def test_without_pairs_everything_stays() -> None:
    nothing = Pairs(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32))
    assert group_copies([nothing], np.arange(3), np.zeros(3, bool)).keep.all()


@pytest.mark.parametrize("seed", range(5))
def test_groups_do_not_depend_on_how_pairs_are_divided(seed: int) -> None:
    rng = np.random.default_rng(seed)
    graph = np.unique(np.sort(rng.integers(0, 60, (70, 2)), axis=1), axis=0)
    graph = graph[graph[:, 0] < graph[:, 1]]
    pairs = Pairs(graph[:, 0], graph[:, 1], rng.choice([0.8, 0.85, 0.9], len(graph)).astype(np.float32))
    rank, contaminated = rng.permutation(60), rng.random(60) < 0.05
    whole = group_copies([pairs], rank, contaminated)
    shares = rng.integers(0, 4, len(graph))
    divided = group_copies([Pairs(*(column[shares == i] for column in pairs)) for i in range(4)], rank, contaminated)
    for one, other in zip(whole, divided, strict=True):
        np.testing.assert_array_equal(one, other)
    for image in np.flatnonzero(~whole.keep & ~contaminated):
        steps, at = 0, image
        while not (whole.keep[at] or contaminated[at]):
            at, steps = whole.witness[at], steps + 1
            assert steps < 60
        assert whole.component[at] == whole.component[image]
