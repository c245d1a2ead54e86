"""The running samples against sorting everything; parts merged in any order equal one pass."""

import random
from itertools import pairwise

import numpy as np
import pytest
import torch

from neuroexplain.collecting import merge_layers as merging
from neuroexplain.collecting.collector import Collector
from neuroexplain.collecting.merge_layers import merge_layers
from neuroexplain.collecting.records import RandomSegments, sampled_records
from neuroexplain.collecting.sample import SPARE_ON_GPU, Sample, SampleOffer, fold_sample, segment_sizes
from neuroexplain.subject.load import load_subject
from tests.collecting.draws import RANDOM_SHARES, SAMPLED_SHARES, SPLITS, counts, drawn_at_random
from tests.fakes import tiny_subject

N, D = 160, 6
COUNTS = {"explain": 4, "select": 2, "report": 5}


@pytest.fixture(scope="module")
def offered():
    """Activations of which many are equal, so that ratios are, in segments of two values of u."""
    generator = torch.Generator().manual_seed(3)
    acts = torch.randint(-1, 3, (N, 128, D), generator=generator).float()
    acts[:, :, 0] = 1.0  # all segments have the same size
    acts[:, :, 1] = -2.0  # never above 0
    acts[:, 64:, 2] = 0.0
    acts[5, 70, 2], acts[9, 100, 2] = 1.0, 1.0  # two segments at most
    uniforms = torch.tensor([0.25, 0.5], dtype=torch.float64)[torch.randint(0, 2, (N,), generator=generator)]
    numbers = torch.randperm(10 * N, generator=generator)[:N]
    splits = torch.randint(-1, 3, (N,), generator=generator)
    halves = torch.randint(0, 2, (N,), generator=generator)
    return acts, numbers, splits, halves, uniforms


def sort_everything(offered, unit, split, sign=1):
    """([(segment, size)] of a unit's sample, the threshold)."""
    acts, numbers, splits, halves, uniforms = offered
    ratios = []
    for row in range(N):
        first = 64 + 32 * int(halves[row])
        size = sum(max(sign * value, 0.0) ** 2 for value in acts[row, first : first + 32, unit].tolist())
        if splits[row] >= 0 and SPLITS[splits[row]] == split and size > 0:
            ratios.append((-size / float(uniforms[row]), int(numbers[row]), size))  # small integers: exact
    ratios.sort()
    n = COUNTS[split]
    return [(segment, size) for _, segment, size in ratios[:n]], -ratios[n][0] if len(ratios) > n else 0.0


def offer_of(offered, rows):
    _, numbers, splits, halves, uniforms = offered
    return SampleOffer(
        numbers[rows], splits[rows].clamp(min=0), splits[rows] >= 0, halves[rows], uniforms[rows], None
    )


def nowhere(segments, positions, starts):
    return segments, positions, segments


@pytest.mark.parametrize("batch_size", [1, 6, 7, 16, 17, N])
@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize("side", ["positive", "negative"])
@pytest.mark.parametrize("spare", [SPARE_ON_GPU, Sample.spare])
def test_running_samples_equal_sorting_everything(offered, batch_size, backwards, side, spare, monkeypatch):
    monkeypatch.setattr(Sample, "spare", spare)
    acts, numbers = offered[:2]
    state = Sample(D, COUNTS, torch.float32, torch.device("cpu"))
    rows = torch.arange(N - 1, -1, -1) if backwards else torch.arange(N)
    for batch in rows.split(batch_size):
        offer = offer_of(offered, batch)
        sizes = segment_sizes(acts[batch], ("positive", "negative"), offer)
        fold_sample(state, acts[batch], sizes[side], offer)
    row_of = {int(number): row for row, number in enumerate(numbers)}
    for split, sample in sampled_records(state, side, nowhere).items():
        for unit in range(D):
            expected, threshold = sort_everything(offered, unit, split, 1 if side == "positive" else -1)
            n = int(sample.records.counts[unit])
            segments = sample.records.segments[unit, :n].tolist()
            assert list(zip(segments, sample.sizes[unit, :n].tolist(), strict=True)) == expected
            assert sample.thresholds[unit] == threshold
            windows = acts[[row_of[segment] for segment in segments], 64:, unit].numpy()
            np.testing.assert_array_equal(sample.records.activations[unit, :n], windows)
            assert (sample.records.activations[unit, n:] == 0).all()
            assert (sample.records.documents[unit, n:] == -1).all()


def test_the_offers_have_ties_where_the_sample_ends_and_units_without_a_choice(offered):
    """So that the tests above and below say something."""
    sample, threshold = sort_everything(offered, 0, "report")
    assert sample == sorted(sample)  # equal sizes, equal u: by segment
    assert threshold == 32 / 0.25
    assert sort_everything(offered, 1, "report") == ([], 0.0)
    assert sum(len(sort_everything(offered, 2, split)[0]) for split in SPLITS) <= 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("at_once", [1, 64 * D * 3, 10**9])
def test_sizes_have_the_same_bits_in_every_batch_shape(dtype, at_once, monkeypatch):
    from neuroexplain.collecting import sample as module

    acts = (torch.randn(20, 128, D, generator=torch.Generator().manual_seed(2)) * 3).to(dtype)
    barred = torch.rand(20, 64, generator=torch.Generator().manual_seed(4)) < 0.1
    segments, splits = list(range(100, 120)), np.zeros(20, np.int8)
    cpu = torch.device("cpu")
    whole = segment_sizes(acts, ("positive", "negative"), SampleOffer.of(segments, splits, 0, cpu, barred))
    before = acts.clone()
    monkeypatch.setattr(module, "CACHED_ACTIVATIONS", at_once)
    for size in (1, 3, 20):
        for first in range(0, 20, size):
            rows = slice(first, first + size)
            offer = SampleOffer.of(segments[rows], splits[rows], 0, cpu, barred[rows])
            for side, sizes in segment_sizes(acts[rows], ("positive", "negative"), offer).items():
                assert torch.equal(sizes, whole[side][rows])
    assert torch.equal(acts, before)  # nothing wrote into the model's own activations


@pytest.mark.parametrize("n", [32, 33, 7, 3, 0])
@pytest.mark.parametrize("size", [1, 9, 300])
def test_random_records_are_each_split_s_smallest_hashes(n, size):
    draw = np.random.default_rng(n)
    numbers, codes = draw.permutation(900)[:300], draw.integers(-1, 3, 300).astype(np.int8)
    kept = RandomSegments(counts(n, RANDOM_SHARES), 5)
    content = {}  # by slot
    for first in range(0, 300, size):
        rows = slice(first, first + size)
        slots, batch_rows = kept.draw(numbers[rows].tolist(), codes[rows])
        content |= {slot: int(numbers[rows][row]) for slot, row in zip(slots, batch_rows, strict=True)}
    splits = {int(s): SPLITS[code] if code >= 0 else None for s, code in zip(numbers, codes, strict=True)}
    expected = drawn_at_random(splits, splits, n, 5)
    slots, segments = kept.in_order()
    assert segments == expected == [content[slot] for slot in slots]
    n_of_split = [sum(splits[segment] == split for segment in segments) for split in SPLITS]
    assert n_of_split == list(counts(n, RANDOM_SHARES).values())


@pytest.fixture(scope="module")
def subject(tmp_path_factory):
    return load_subject(str(tiny_subject(tmp_path_factory.mktemp("model"))), "float32")


N_RANDOM, N_SAMPLED = 13, 45


def visited(n=70):
    """(token ids, splits) of segments, some of them duplicates; a part may have none of a split."""
    draw = np.random.default_rng(8)
    ids = torch.from_numpy(draw.integers(2, 300, (n, 128)))
    ids[n // 2 :] = ids[: n - n // 2].clone()
    return ids, draw.choice([-1, 0, 1, 2], n, p=[0.1, 0.5, 0.1, 0.3]).astype(np.int8)


def collect(subject, rows):
    options = {"activation": "post", "sign": "both", "top_k": 5, "positions": range(64, 97)}
    collector = Collector(
        subject, (1,), **options, special_peaks=True, n_random=N_RANDOM, n_sampled=N_SAMPLED, seed=2
    )
    ids, splits = visited()
    for row in rows:  # one by one: the same bits in every part
        collector.read(ids[row : row + 1], torch.tensor([row]), splits[row : row + 1])
    return next(collector.finish(nowhere)), len(rows) * 64


def assert_same_records(a, b, n):
    for name in ("segments", "starts", "token_offsets", "peaks", "activations"):
        values, expected = getattr(a, name), getattr(b, name)
        for unit, count in enumerate(n):
            np.testing.assert_array_equal(values[unit, :count], expected[unit, :count], name)


@pytest.fixture(scope="module")
def whole(subject):
    return collect(subject, range(70))[0]


@pytest.mark.parametrize("seed", range(4))
def test_parts_merged_two_at_a_time_in_any_order_are_one_pass(subject, whole, seed):
    """The first part has two segments only, the whole fewer of `select` than it draws."""
    ids, codes = visited()
    order = random.Random(seed)
    rows = list(range(len(ids)))
    order.shuffle(rows)
    cuts = [0, 2, 5, 20, 45, 70]
    left = [collect(subject, rows[a:b]) for a, b in pairwise(cuts)]
    while len(left) > 1:
        order.shuffle(left)
        (a, n_a), (b, n_b) = left.pop(), left.pop()
        merged = merge_layers(
            a,
            b,
            {row: ids[row].numpy().astype(np.uint32) for row in range(len(ids))},
            splits={row: SPLITS[code] if code >= 0 else None for row, code in enumerate(codes)},
            top_k=5,
            n_random=N_RANDOM,
            n_sampled=N_SAMPLED,
            seed=2,
            n_tokens=(n_a, n_b),
        )
        left.append((merged, n_a + n_b))
    merged = left[0][0]
    for kind, x in whole.exemplars.items():
        assert merged.exemplars[kind].counts.tolist() == x.counts.tolist()
        assert_same_records(merged.exemplars[kind], x, x.counts)
    assert set(merged.samples) == set(whole.samples)
    for group, x in whole.samples.items():
        y = merged.samples[group]
        assert y.records.counts.tolist() == x.records.counts.tolist()
        assert y.thresholds.tolist() == x.thresholds.tolist()
        assert_same_records(y.records, x.records, x.records.counts)
        for unit, count in enumerate(x.records.counts):
            assert y.sizes[unit, :count].tolist() == x.sizes[unit, :count].tolist()
    assert any((x.thresholds > 0).all() for x in whole.samples.values())
    assert any(
        (x.records.counts < counts(N_SAMPLED, SAMPLED_SHARES)[split]).any()
        for (_, split), x in whole.samples.items()
    )


def test_merged_ties_go_to_the_smaller_segment(offered, monkeypatch):
    acts, numbers, *_, uniforms = offered
    uniform = {int(number): float(u) for number, u in zip(numbers, uniforms, strict=True)}
    monkeypatch.setattr(merging, "uniform_of", lambda seed, segment: uniform.get(segment, 1.0))
    parts = []
    for part in range(3):
        state = Sample(D, COUNTS, torch.float32, torch.device("cpu"))
        rows = torch.arange(part, N, 3)
        offer = offer_of(offered, rows)
        fold_sample(state, acts[rows], segment_sizes(acts[rows], ("positive",), offer)["positive"], offer)
        parts.append(sampled_records(state, "positive", nowhere))
    for split, n in COUNTS.items():
        first, second, third = (part[split] for part in parts)
        merged = merging._merge_sample([third, merging._merge_sample([first, second], n, 0)], n, 0)
        for unit in range(D):
            expected, threshold = sort_everything(offered, unit, split)
            count = int(merged.records.counts[unit])
            segments = merged.records.segments[unit, :count].tolist()
            assert list(zip(segments, merged.sizes[unit, :count].tolist(), strict=True)) == expected
            assert merged.thresholds[unit] == threshold
