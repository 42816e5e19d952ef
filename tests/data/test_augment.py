"""Crops: places and scales by the numbers drawn, colour changes against plain references."""

import colorsys

import numpy as np
import pytest
import torch

from dinov2.data.augment import NUM_CROP_DRAWS, cut_crops, draw_colours, num_draws, place_crop
from dinov2.data.colour import ORDERS, Colours, gaussian_blur, recolour, solarize, to_gray, turn_hue
from dinov2.data.draws import uniforms
from dinov2.data.params import CropParams
from dinov2.data.view import MEAN, STD

PARAMS = CropParams(
    global_size_px=32, global_scale=(0.32, 1.0), local_size_px=16, local_scale=(0.05, 0.32), num_local=3,
    blur="reference", jitter_probability=0.8, brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1,
    grayscale_probability=0.2, solarize_probability=0.2,
)  # fmt: skip


def neutral(num: int) -> Colours:
    return Colours(
        torch.tensor([[1.0, 1.0, 1.0, 0.0]]).repeat(num, 1), torch.zeros(num, dtype=torch.long),
        torch.zeros(num), torch.zeros(num), torch.zeros(num),
    )  # fmt: skip


def draws(num: int, seed: int = 0) -> np.ndarray:
    return np.stack([uniforms("augment", seed, 0, place, NUM_CROP_DRAWS) for place in range(num)])


def test_place_crop_stays_inside_with_asked_area() -> None:
    shares = []
    for row in draws(500).tolist():
        top, left, height, width = place_crop(300, 400, (0.32, 1.0), row)
        assert 0 <= top <= 300 - height
        assert 0 <= left <= 400 - width
        assert 0.7 < width / height < 1.4
        shares.append(height * width / (300 * 400))
    assert min(shares) > 0.31
    assert 0.5 < np.mean(shares) < 0.7


def test_place_crop_of_a_very_long_image_is_its_middle() -> None:
    assert place_crop(10, 1000, (0.32, 1.0), draws(1)[0].tolist()) == (0, 493, 10, 13)


def test_cut_crops_depends_only_on_its_draws() -> None:
    image = np.random.default_rng(0).integers(0, 256, (80, 100, 3), dtype=np.uint8)
    outs = []
    for slot in (5, 5, 6):
        outs.append((torch.empty(2, 3, 32, 32, dtype=torch.uint8), torch.empty(3, 3, 16, 16, dtype=torch.uint8)))
        cut_crops(image, uniforms("augment", 1, 2, slot, num_draws(PARAMS)), PARAMS, *outs[-1])
    assert torch.equal(outs[0][0], outs[1][0])
    assert torch.equal(outs[0][1], outs[1][1])
    assert not torch.equal(outs[0][0], outs[2][0])


def test_cut_crops_of_the_whole_image_is_the_image_or_its_mirror() -> None:
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    whole = PARAMS.model_copy(update={"global_scale": (1.0, 1.0)})
    row = np.full(num_draws(PARAMS), 0.5)  # ratio 1
    out, local = torch.empty(2, 3, 32, 32, dtype=torch.uint8), torch.empty(3, 3, 16, 16, dtype=torch.uint8)
    row[22] = 0.0  # the first crop is flipped
    cut_crops(image, row, whole, out, local)
    expected = torch.from_numpy(image).permute(2, 0, 1)
    assert torch.equal(out[0], expected.flip(2))
    assert torch.equal(out[1], expected)


@pytest.mark.parametrize(("blur", "expected"), [("reference", (0.0, 0.9, 0.5)), ("paper", (1.0, 0.1, 0.5))])
def test_draw_colours_has_the_recipe_s_probabilities(blur: str, expected: tuple[float, ...]) -> None:
    params = PARAMS.model_copy(update={"blur": blur})
    numbers = draws(4000)
    for kind, blurred, solarized in zip(("global_1", "global_2", "local"), expected, (0.0, 0.2, 0.0), strict=True):
        colours = draw_colours(numbers, kind, params)
        assert (colours.sigma_px > 0).float().mean().item() == pytest.approx(blurred, abs=0.03)
        assert colours.solarize.mean().item() == pytest.approx(solarized, abs=0.03)
        assert colours.gray.mean().item() == pytest.approx(0.2, abs=0.03)
        assert (colours.factors[:, 0] != 1).float().mean().item() == pytest.approx(0.8, abs=0.03)
        assert colours.factors[:, 0].min() >= 0.6 - 1e-6
        assert colours.factors[:, 2].max() <= 1.2 + 1e-6
        assert colours.factors[:, 3].abs().max() <= 0.1
        assert len(colours.order.unique()) == 24


def test_recolour_neutral_only_normalises() -> None:
    crops = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)
    expected = (crops / 255 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    torch.testing.assert_close(recolour(crops, neutral(2)), expected)


def denormalised(x: torch.Tensor) -> torch.Tensor:
    return x * torch.tensor(STD).view(3, 1, 1) + torch.tensor(MEAN).view(3, 1, 1)


def test_recolour_applies_the_changes_in_their_order() -> None:
    torch.manual_seed(0)
    crops = torch.randint(0, 256, (24, 3, 8, 8), dtype=torch.uint8)
    factors = torch.tensor([[1.3, 0.7, 1.2, 0.05]]).repeat(24, 1)
    result = denormalised(recolour(crops, neutral(24)._replace(factors=factors, order=torch.arange(24))))
    changes = (
        lambda x: x * 1.3,
        lambda x: 0.7 * x + 0.3 * to_gray(x).mean(),
        lambda x: 1.2 * x - 0.2 * to_gray(x),
        lambda x: turn_hue(x.clone(), torch.tensor([0.05])),
    )
    for number, order in enumerate(ORDERS.tolist()):
        x = crops[number : number + 1] / 255
        for change in order:
            x = changes[change](x).clamp(0, 1)
        torch.testing.assert_close(result[number : number + 1], x, atol=1e-5, rtol=0)


def test_recolour_of_a_crop_does_not_depend_on_the_others() -> None:
    torch.manual_seed(0)
    crops = torch.randint(0, 256, (60, 3, 24, 24), dtype=torch.uint8)
    colours = draw_colours(draws(60), "global_2", PARAMS)
    together = recolour(crops, colours)
    apart = [recolour(crops[i : i + 1], Colours(*(part[i : i + 1] for part in colours))) for i in range(60)]
    assert torch.equal(together, torch.cat(apart))


def test_turn_hue_equals_colorsys() -> None:
    torch.manual_seed(0)
    x = torch.rand(1, 3, 5, 5)
    x[0, :, 0, 0] = 0.4  # a gray pixel has no hue
    x[0, :, 0, 1] = torch.tensor([1.0, 0.5, 0.5])  # two channels alike, in three ways
    x[0, :, 0, 2] = torch.tensor([0.2, 0.9, 0.9])
    x[0, :, 0, 3] = torch.tensor([0.0, 0.0, 1.0])
    x[0, :, 0, 4] = 0.0
    for turns in (-0.5, -0.3, -0.1, 0.0, 0.02, 0.5):
        turned = turn_hue(x.clone(), torch.tensor([turns]))
        for row in range(5):
            for column in range(5):
                hue, saturation, value = colorsys.rgb_to_hsv(*x[0, :, row, column].tolist())
                expected = colorsys.hsv_to_rgb((hue + turns) % 1, saturation, value)
                assert turned[0, :, row, column].tolist() == pytest.approx(expected, abs=2e-6), (turns, row, column)


def test_gaussian_blur_of_a_point_is_the_kernel() -> None:
    x = torch.zeros(2, 3, 17, 17)
    x[:, :, 8, 8] = 1
    blurred = gaussian_blur(x.clone(), torch.tensor([1.5, 0.1]))
    distance = torch.arange(-4, 5)
    kernel = torch.exp(-0.5 * (distance / 1.5) ** 2)
    kernel = kernel / kernel.sum()
    torch.testing.assert_close(blurred[0, 1, 4:13, 4:13], kernel[:, None] * kernel)
    torch.testing.assert_close(blurred[1], x[1])


def test_gaussian_blur_mirrors_at_the_edges() -> None:
    x = torch.zeros(1, 3, 12, 12)
    x[:, :, 1, 6] = 1  # its mirror image lies at -1
    row = gaussian_blur(x.clone(), torch.tensor([1.0]))[0, 0, :, 6]
    kernel = torch.exp(-0.5 * torch.arange(-4, 5) ** 2)
    kernel = kernel / kernel.sum()
    torch.testing.assert_close(row[0], 2 * kernel[3] * kernel[4])


def test_solarize_equals_the_threshold_of_128_on_every_level() -> None:
    levels = torch.arange(256)
    expected = torch.where(levels >= 128, 255 - levels, levels)
    solarized = solarize((levels / 255).view(1, 1, 16, 16).repeat(1, 3, 1, 1), torch.ones(1))
    assert torch.equal((solarized[0, 0].flatten() * 255).round().long(), expected)


def test_draw_colours_orders_are_equally_likely() -> None:
    counts = torch.bincount(draw_colours(draws(6000), "local", PARAMS).order, minlength=24)
    assert counts.min() > 180  # of 250, with a standard deviation of 15
    assert counts.max() < 320


def test_recolour_solarizes_and_grays_only_those_asked() -> None:
    crops = torch.full((3, 3, 8, 8), 200, dtype=torch.uint8)
    crops[:, 0] = 60
    colours = neutral(3)._replace(gray=torch.tensor([0.0, 1.0, 0.0]), solarize=torch.tensor([0.0, 0.0, 1.0]))
    x = denormalised(recolour(crops, colours))
    assert (x[0, :, 0, 0] * 255).tolist() == pytest.approx([60, 200, 200], abs=0.01)
    assert x[1, :, 0, 0].tolist() == pytest.approx([x[1, 0, 0, 0].item()] * 3)
    assert (x[2, :, 0, 0] * 255).tolist() == pytest.approx([60, 55, 55], abs=0.01)
