"""The running top k against sorting everything, where ties, duplicates and barred positions are common."""

import numpy as np
import pytest
import torch

from neuroexplain.collecting.running_best import EMPTY
from neuroexplain.collecting.statistics import RunningStats
from neuroexplain.collecting.top_k import (
    Offer,
    TopK,
    fold_top_k,
    hash_records,
    order_keys,
    segments_of,
)

POSITIONS = range(64, 97)
N, D, K = 150, 7, 5


@pytest.fixture(scope="module")
def seen():
    """Activations of few values, so ties are common; 6 patterns of ids, so duplicates are; some barred."""
    generator = torch.Generator().manual_seed(3)
    acts = torch.randint(-3, 4, (N, 128, D), generator=generator).float()
    acts[:, :, 6] = acts[:, :, 6].clamp(max=0) * 0.0 - 1.0  # one neuron that is nowhere above 0
    patterns = torch.randint(0, 9, (6, 128), generator=generator)
    ids = patterns[torch.randint(0, 6, (N,), generator=generator)]
    ids[:40] = torch.randint(0, 9, (40, 128), generator=generator)
    allowed = torch.rand(N, len(POSITIONS), generator=generator) > 0.3
    allowed[[3, 77]] = False  # segments that offer nothing
    return acts, ids, allowed, torch.randperm(10 * N, generator=generator)[:N]


def brute_force(acts, ids, allowed, segments, neuron):
    candidates = []
    for row in range(len(acts)):
        positions = [p for p in POSITIONS if allowed[row, p - 64]]
        if positions:
            best = max(positions, key=lambda p: (acts[row, p, neuron].item(), -p))
            record = tuple(ids[row, best - 32 : best + 32].tolist())
            candidates.append((-acts[row, best, neuron].item(), int(segments[row]), best - 32, record))
    kept, records = [], set()
    for value, segment, start, record in sorted(candidates):
        if record not in records:
            records.add(record)
            kept.append((-value, segment, start))
    return kept[:K]


def read_out(state, neuron):
    keys, slots = state.best()
    used = keys[neuron] > EMPTY
    slots = slots[neuron][used]
    values = state.windows[neuron, slots, 32].tolist()
    starts = state.starts[neuron, slots].tolist()
    return list(zip(values, segments_of(keys[neuron][used]).tolist(), starts, strict=True))


def fold(seen, rows, batch_size, *, lowest=False):
    acts, ids, allowed, segments = seen
    state = TopK(D, K, torch.float32, torch.device("cpu"))
    for batch in torch.as_tensor(rows).split(batch_size):
        offer = Offer.of(ids[batch], segments[batch], POSITIONS, allowed[batch])
        fold_top_k(state, acts[batch], offer, lowest=lowest)
    return state


@pytest.mark.parametrize("batch_size", [1, 7, TopK.spare, TopK.spare + 1, N])
@pytest.mark.parametrize("backwards", [False, True])
def test_the_running_top_k_equals_sorting_everything(seen, batch_size, backwards):
    rows = list(range(N))[:: -1 if backwards else 1]
    state = fold(seen, rows, batch_size)
    for neuron in range(D):
        assert read_out(state, neuron) == brute_force(*seen, neuron)


def test_hashes_of_records_stay_what_checkpoints_hold():
    assert hash_records(torch.arange(65)[None])[0].tolist() == [-2902091311961523524, 489672236383867444]


def test_after_making_room_a_candidate_must_beat_the_kth_record(seen):
    state = fold(seen, range(N), 7)
    state.make_room(torch.arange(D))
    best, _ = state.best()
    assert state.least.tolist() == best[:, K - 1].tolist()
    assert (state.least > EMPTY).any()


@pytest.mark.parametrize("batch_size", [7, N])
def test_the_running_bottom_k_is_the_top_k_of_the_negated(seen, batch_size):
    acts, *rest = seen
    state = fold(seen, range(N), batch_size, lowest=True)
    for neuron in range(D):
        expected = brute_force(-acts, *rest, neuron)
        assert [(-value, *place) for value, *place in read_out(state, neuron)] == expected


def test_windows_are_those_of_the_records(seen):
    acts, _, _, segments = seen
    state = fold(seen, range(N), 16)
    keys, slots = state.best()
    for neuron in range(D):
        for key, slot in zip(keys[neuron], slots[neuron], strict=True):
            row = (segments == segments_of(key)).nonzero()[0, 0]
            start = int(state.starts[neuron, slot])
            assert torch.equal(state.windows[neuron, slot], acts[row, start : start + 64, neuron])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_statistics_hold_far_from_zero(dtype):
    acts = (
        torch.randn(12, 64, 5, generator=torch.Generator().manual_seed(1))
        + torch.tensor([0, 1, -1, 100, 3000.0])
    ).to(dtype)
    stats = RunningStats(5, torch.device("cpu"))
    for batch in acts.split(5):
        stats.fold(batch)
    finished, flat = stats.finish(), acts.double().flatten(0, 1).numpy()
    np.testing.assert_allclose(finished.mean, flat.mean(0), rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(finished.std, flat.std(0), rtol=1e-5)
    np.testing.assert_array_equal(finished.share_positive, (flat > 0).mean(0))
    np.testing.assert_array_equal([finished.min, finished.max], [flat.min(0), flat.max(0)])


def test_keys_are_in_the_order_of_activations_and_of_equal_ones_the_smaller_segment_is_first():
    values = [-2.0, -1.0, -1e-30, -0.0, 0.0, 1e-30, 0.5, 3.0, 65_504.0]
    segments = [7, 0, 2**32 - 1, 4, 5, 9, 1, 8, 3]
    activations, numbers = torch.tensor(values), torch.tensor(segments)
    keys = order_keys(activations, numbers)
    assert segments_of(keys).tolist() == segments
    order = sorted(range(len(values)), key=lambda i: (-values[i], segments[i]))  # -0.0 equals 0.0
    assert keys.argsort(descending=True).tolist() == order
    assert (keys > EMPTY).all()
