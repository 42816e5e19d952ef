"""Histograms: every value in a bar, thresholds where they belong."""

import numpy as np
import pytest

from dinov2.curation.looking.chart import HEIGHT, WIDTH, histogram


@pytest.mark.parametrize("thresholds", [{}, {"min_cosine": 0.3}])
def test_bars_hold_all_values_and_stay_within_the_picture(thresholds: dict[str, float]) -> None:
    values = np.array([0.5, 0.5, 0.75, 1.0, np.nan], np.float32)
    chart = histogram(values, thresholds)
    assert chart is not None
    assert chart.num == 4
    assert sum(int(about.rpartition(": ")[2]) for *_, about in chart.bars) == 4
    assert max(height for _, _, _, height, _ in chart.bars) == HEIGHT
    for left, top, width, height, _ in chart.bars:
        assert left >= 0
        assert left + width <= WIDTH
        assert top + height == pytest.approx(HEIGHT)
    assert [name for _, name in chart.lines] == list(thresholds)
    assert all(0 <= x <= WIDTH for x, _ in chart.ticks + chart.lines)


def test_nothing_to_count_is_no_chart() -> None:
    assert histogram(np.array([np.nan], np.float32), {"threshold": 0.5}) is None
