"""k-NN, linear probe and baselines on features whose answer is known."""

import numpy as np
import torch

from dinov2.eval.baselines import colour_histogram, raw_pixels
from dinov2.eval.features import FrozenFeatures, number_labels
from dinov2.eval.knn import knn_scores
from dinov2.eval.linear import linear_probe
from dinov2.eval.params import KnnParams, LinearParams
from dinov2.metrics import accuracy

LINEAR = LinearParams(learning_rates=[1e-6, 1.0], momentum=0.9, num_steps=150, batch_size=32, validation_share=0.25)
KNN = KnnParams(num_neighbors=[1, 5, 100], reference=5, temperature=0.07)


def clusters(num: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Three separable classes around orthogonal directions."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(num) % 3
    return torch.eye(8)[labels] * 2 + 0.3 * torch.randn(num, 8, generator=generator), labels


def frozen(cls: torch.Tensor, patches: torch.Tensor) -> FrozenFeatures:
    return FrozenFeatures(cls, patches)


def test_knn_limits_neighbours_to_the_training_images() -> None:
    train, labels = clusters(12, 0)
    test, wanted = clusters(30, 1)
    scores = knn_scores(train, labels, test, num_classes=3, params=KNN)
    assert sorted(scores) == [1, 5, 12]
    assert accuracy(scores[5], wanted, 1) == 1.0


def test_knn_ignores_the_length_of_features() -> None:
    train, labels = clusters(12, 0)
    test, _ = clusters(30, 1)
    stretched = knn_scores(train * torch.arange(1, 13)[:, None], labels, test * 7, num_classes=3, params=KNN)
    torch.testing.assert_close(stretched[5], knn_scores(train, labels, test, num_classes=3, params=KNN)[5])


def test_linear_probe_chooses_what_separates_on_the_training_split() -> None:
    cls, labels = clusters(60, 0)
    test, wanted = clusters(30, 1)
    noise = torch.zeros_like
    probe = linear_probe(
        frozen(cls, noise(cls)), labels, frozen(test, noise(test)), num_classes=3, params=LINEAR, seed=0
    )
    assert probe.learning_rate == 1.0
    assert not probe.uses_patches  # equal validation: the first, simpler input
    assert accuracy(probe.scores, wanted, 1) == 1.0


def test_linear_probe_takes_patches_where_the_class_token_says_nothing() -> None:
    patches, labels = clusters(60, 0)
    test, wanted = clusters(30, 1)
    probe = linear_probe(
        frozen(torch.zeros_like(patches), patches), labels, frozen(torch.zeros_like(test), test),
        num_classes=3, params=LINEAR, seed=0,
    )  # fmt: skip
    assert probe.uses_patches
    assert accuracy(probe.scores, wanted, 1) == 1.0


def test_linear_probe_choice_does_not_depend_on_the_test_images() -> None:
    cls, labels = clusters(60, 0)
    test, _ = clusters(30, 1)
    train = frozen(cls, cls)
    first = linear_probe(train, labels, frozen(test, test), num_classes=3, params=LINEAR, seed=0)
    other = linear_probe(
        train, labels, frozen(-test, test[:, :0].new_ones(30, 8)), num_classes=3, params=LINEAR, seed=0
    )
    assert first[1:] == other[1:]


def test_linear_probe_with_one_image_a_label_still_answers() -> None:
    cls, labels = torch.eye(8)[:3], torch.arange(3)
    probe = linear_probe(frozen(cls, cls), labels, frozen(cls, cls), num_classes=3, params=LINEAR, seed=0)
    assert accuracy(probe.scores, labels, 1) == 1.0


def test_colour_histogram_is_of_unit_length_and_blind_to_place() -> None:
    generator = np.random.Generator(np.random.PCG64(0))
    image = torch.from_numpy(generator.integers(0, 256, (3, 16, 16), dtype=np.uint8))
    histogram = colour_histogram(image, 8)
    assert histogram.shape == (512,)
    torch.testing.assert_close(histogram.norm(), torch.tensor(1.0))
    torch.testing.assert_close(histogram, colour_histogram(image.flip(1).flip(2), 8))
    red = torch.zeros(3, 4, 4, dtype=torch.uint8)
    red[0] = 255
    assert colour_histogram(red, 8).argmax().item() == 7 * 64


def test_raw_pixels_tell_place_and_not_brightness() -> None:
    dark = torch.zeros(3, 64, 64, dtype=torch.uint8)
    dark[:, :32] = 50
    cosine = torch.nn.functional.cosine_similarity
    assert cosine(raw_pixels(dark, 32), raw_pixels(dark + 100, 32), dim=0) > 0.999
    assert cosine(raw_pixels(dark, 32), raw_pixels(dark.flip(1), 32), dim=0) < -0.99


def test_number_labels_follows_the_sorted_names() -> None:
    assert number_labels(["b", "a", "b"], ["a", "b"]).tolist() == [1, 0, 1]
