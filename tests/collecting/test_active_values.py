"""Statistics and histograms of sparse units from the values that are not 0, against all values."""

import numpy as np
import pytest
import torch

from neuroexplain.collecting.active_values import ActiveValues
from neuroexplain.collecting.histogram import RunningHistogram
from neuroexplain.collecting.statistics import RunningStats
from neuroexplain.histogram import EDGES

WIDTH, CPU = 50, torch.device("cpu")


def batches(n):
    """Rare units, units that are never silent, one that never fires, and one with values below 0."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(n):
        acts = torch.randn(3, 64, WIDTH, generator=generator)
        acts[..., :40] *= torch.rand(3, 64, 40, generator=generator) < 0.05
        acts[..., :49] = acts[..., :49].abs()
        acts[..., 40] = 0.0
        yield acts


@pytest.mark.parametrize("cut", [1, 20, WIDTH])
def test_statistics_and_histogram_are_those_of_all_values(cut):
    stats, histogram = RunningStats(WIDTH, CPU), RunningHistogram(WIDTH, CPU)
    for acts in batches(4):
        for units in (slice(0, cut), slice(cut, WIDTH)):
            active = ActiveValues.of(acts[..., units])
            stats.fold_active(units, active)
            histogram.fold(units, active)
        stats.count(acts.shape[0] * acts.shape[1])
    everything = torch.cat([acts.reshape(-1, WIDTH) for acts in batches(4)]).double().numpy()
    got = stats.finish()
    np.testing.assert_allclose(got.mean, everything.mean(axis=0), rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(got.std, everything.std(axis=0), rtol=1e-9)
    np.testing.assert_array_equal(got.min, everything.min(axis=0))
    np.testing.assert_array_equal(got.max, everything.max(axis=0))
    np.testing.assert_array_equal(got.share_positive, (everything > 0).mean(axis=0))
    places = np.searchsorted(EDGES, everything, side="right")
    for unit in range(WIDTH):
        above = everything[:, unit] > 0
        expected = np.bincount(places[above, unit], minlength=len(EDGES) + 1)
        np.testing.assert_array_equal(histogram.finish()[unit], expected)


@pytest.mark.parametrize("wrong", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_shows_in_the_extremes(wrong):
    stats = RunningStats(WIDTH, CPU)
    (acts,) = batches(1)
    acts[1, 7, 3] = wrong
    stats.fold_active(slice(0, WIDTH), ActiveValues.of(acts))
    extremes = torch.stack([stats.min, stats.max])
    assert not extremes[:, 3].isfinite().all()
    assert extremes[:, :3].isfinite().all()
    assert extremes[:, 4:].isfinite().all()
