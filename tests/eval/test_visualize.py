"""The PCA picture on patch features whose parts are known."""

import torch

from dinov2.eval.visualize import border, colours, principal_components, spread


def test_foreground_is_the_middle_and_keeps_its_colours() -> None:
    generator = torch.Generator().manual_seed(0)
    features = 0.01 * torch.randn(3, 64, 16, generator=generator)
    middle = torch.zeros(8, 8, dtype=torch.bool)
    middle[2:6, 2:6] = True
    features[:, middle.flatten(), 0] += 5.0  # the strongest direction parts the middle from the border
    features[:, middle.flatten(), 1] += torch.linspace(-1, 1, 16)  # the second runs over the middle
    scores = principal_components(features)
    assert ((scores[..., 0] > 0) == middle.flatten()).all()
    picture = colours(scores)
    assert picture.shape == (3, 8, 8, 3)
    assert picture[:, ~middle.numpy()].max() <= 64
    red = picture[0][middle.numpy()][:, 0].astype(int)
    assert abs(red[0] - red[-1]) > 240


def test_principal_components_of_fewer_dimensions_than_four() -> None:
    scores = principal_components(torch.randn(2, 9, 2, generator=torch.Generator().manual_seed(0)))
    assert scores.shape == (2, 9, 4)
    assert (scores[..., 2:] == 0).all()


def test_border_of_a_grid() -> None:
    assert border(16).sum() == 12


def test_spread_shows_labels_before_it_repeats_one() -> None:
    labels = ["a"] * 4 + ["b"] * 4
    assert spread(labels, 3) == [0, 4, 1]
    assert spread(list("abcdef"), 3) == [0, 2, 4]
    assert spread(["a"], 5) == [0]
