"""Splits and draws against their definitions, by loops over tokens; totals are unbiased."""

import numpy as np
import pytest

from neuroexplain.corpus.token_stream import TokenStream
from neuroexplain.evidence import SPLITS
from neuroexplain.sampling import (
    NO_SPLIT,
    RANDOM_SHARES,
    SAMPLED_SHARES,
    count_passages,
    probability_of,
    scored_first,
    share_out,
    split_segments,
    sum_squares,
    uniform_of,
)
from neuroexplain.scoring.record_faults import _split_at
from neuroexplain.stable_hash import stable_hash
from tests.collecting.draws import only, size, split_of, splits_of_documents


def code_of(split):
    return -1 if split is None else ("explain", "select", "report").index(split)


@pytest.mark.parametrize("seed", [0, 7])
@pytest.mark.parametrize("length", [1, 30, 90, 2000, 8192, 20_000])
def test_splits_are_those_of_the_tokens_passages(length, seed):
    lengths = [length] * (200_000 // length)
    expected = splits_of_documents(lengths, seed)
    stream = TokenStream.of(np.zeros(n, np.uint32) for n in lengths)
    numbers = np.random.default_rng(1).permutation(len(expected))
    assert stream.splits(numbers, seed).tolist() == [code_of(expected[n]) for n in numbers]
    assert [segment.split for segment in stream.segments(numbers, seed)] == [expected[n] for n in numbers]
    shares = [sum(split == name for split in expected) / len(expected) for name in SPLITS]
    assert sum(shares) >= 0.85
    assert min(shares) > 0.1  # there is something to compare


def test_splits_of_documents_of_all_lengths_and_of_none():
    draw = np.random.default_rng(2)
    lengths = [0, 0, *np.exp(draw.uniform(0, 10, 60)).astype(int).tolist(), 0, 25_000, 0, 1, 300]
    expected = splits_of_documents(lengths, 3)
    stream = TokenStream.of(np.zeros(n, np.uint32) for n in lengths)
    assert stream.splits(np.arange(len(expected)), 3).tolist() == list(map(code_of, expected))
    assert stream.splits(np.array([], np.int64), 3).tolist() == []


def test_a_passage_ends_with_its_document_or_after_8192_tokens():
    """One document: its pieces begin at 0, 8,192, 16,384, whose passages are 0, 8, 16."""
    splits = split_segments(5, np.arange(180), np.array([0]))
    assert splits.tolist() == [code_of(split_of(8 * (n // 64), 5)) for n in range(180)]
    # A document that begins at token 1,023 is in passage 0, one that begins at 1,024 in passage 1.
    seed = next(n for n in range(100) if split_of(0, n) != split_of(1, n))
    for begin, expected in ((1023, [split_of(0, seed)] * 2), (1024, [split_of(0, seed), split_of(1, seed)])):
        splits = split_segments(seed, np.array([7, 8]), np.array([0, begin]))
        assert splits.tolist() == list(map(code_of, expected))


@pytest.mark.parametrize("stride", [1, 128])
def test_where_documents_are_not_known_a_passage_is_1024_tokens(stride):
    segments = np.arange(0, 400_000, 77) // stride
    expected = [
        only([split_of((segment * stride + i) // 1024, 9) for i in range(128)])
        for segment in segments.tolist()
    ]
    assert split_segments(9, segments, None, stride).tolist() == list(map(code_of, expected))
    assert {None, *SPLITS} == set(expected) if stride == 1 else set(SPLITS) == set(expected)


@pytest.mark.parametrize("known", [True, False], ids=["in a document", "without documents"])
def test_verify_has_the_same_rule_for_a_token_s_split(known):
    for begin in range(0, 2_000_000, 12_345):
        for offset, token in ((0, 0), (0, 63), (-7, 40), (9000, 32)):
            document = begin - offset
            place = document + 8192 * ((offset + token) // 8192) if known else begin + token
            assert _split_at(5, begin, offset, token, known) == split_of(place // 1024, 5)


@pytest.mark.parametrize("n", [1, 63, 64, 65, 200, 1536, 1537, 1600])
def test_passages_are_counted_until_more_than_24_are_sure(n):
    """Of one document, whose passages are its pieces of 64 segments."""
    counted = count_passages(np.arange(n), np.array([0]))
    assert counted == min(25, -(-n // 64))


def test_short_documents_share_passages_with_their_neighbours():
    begins = np.arange(0, 40 * 128, 30)
    assert count_passages(np.arange(40), begins) == 5


def test_a_split_s_share_is_three_two_and_three_eighths():
    splits = split_segments(0, 8 * np.arange(20_000), None)
    shares = [(splits == code).mean() for code in range(3)]
    np.testing.assert_allclose(shares, [3 / 8, 2 / 8, 3 / 8], atol=0.015)
    assert NO_SPLIT not in splits


def test_hashes_stay_what_databases_hold():
    """Recorded: another hash would draw other records than those that are stored."""
    for segment in (0, 5, 4_000_000):
        assert scored_first(3, segment) == 32 * (stable_hash(3, "half", segment) % 2)
        assert uniform_of(3, segment) == (stable_hash(3, "sampled", segment) + 1) / 2**64
    assert split_segments(0, 8 * np.arange(12), None).tolist() == [0, 1, 2, 0, 0, 2, 0, 2, 0, 2, 2, 0]
    assert [scored_first(0, n) // 32 for n in range(12)] == [0, 1, 1, 1, 1, 1, 0, 1, 1, 0, 1, 1]
    assert uniform_of(0, 0) == 0.23797447028841434


@pytest.mark.parametrize(
    ("n", "sampled", "random"),
    [
        (40, (16, 8, 16), None),
        (32, None, (8, 8, 16)),
        (41, (16, 8, 17), (10, 10, 21)),
        (7, (2, 1, 4), (1, 1, 5)),
        (4, (0, 0, 4), (1, 1, 2)),
        (3, (0, 0, 3), (0, 0, 3)),
        (0, (0, 0, 0), (0, 0, 0)),
    ],
)
def test_records_are_shared_out_and_report_gets_the_remainder(n, sampled, random):
    for shares, expected in ((SAMPLED_SHARES, sampled), (RANDOM_SHARES, random)):
        if expected is not None:
            assert share_out(n, shares) == dict(zip(SPLITS, expected, strict=True))


def test_the_size_is_the_sum_of_squares_by_halvings():
    values = np.random.default_rng(0).normal(size=(5, 32)).astype(np.float32) * np.float32(3)
    segment = next(n for n in range(9) if stable_hash(1, "half", n) % 2 == 0)
    for sign in (1, -1):
        expected = [size([*row, *row], [True] * 64, segment, sign, 1) for row in values]
        assert sum_squares(np.float32(sign) * values).tolist() == [float(x) for x in expected]
    one_by_one = [np.float32(0)] * 5
    for token in range(32):
        one_by_one = [
            a + max(b, np.float32(0)) ** 2 for a, b in zip(one_by_one, values[:, token], strict=True)
        ]
    assert sum_squares(values).tolist() != [float(x) for x in one_by_one]  # the order of adding shows


def drawn(sizes, n, n_random, draw):
    """One draw: (probability of each segment, whether it is in the sample or among the random ones)."""
    uniforms = 1 - draw.random(len(sizes))
    ratios = sizes / uniforms
    order = np.argsort(-ratios)
    last = ratios[order[n - 1]] if ratios[order[n - 1]] > 0 else 0.0
    beyond = ratios[order[n]] if len(sizes) > n else 0.0
    if beyond == 0:
        last = 0.0  # all with a size are inside
    is_in = np.zeros(len(sizes), bool)
    is_in[order[:n][ratios[order[:n]] > 0]] = True
    is_in[draw.permutation(len(sizes))[:n_random]] = True
    chances = [
        probability_of(float(w), float(u), float(last), float(beyond), n_random, len(sizes))
        for w, u in zip(sizes, uniforms, strict=True)
    ]
    return np.array(chances), is_in


@pytest.mark.parametrize("tail", [0.5, 1.5, 3.0])
def test_totals_by_these_probabilities_are_those_of_all_segments(tail):
    """Of another quantity than the size, over many draws: within three standard errors, and 1%."""
    source = np.random.default_rng(4)
    sizes = np.exp(tail * source.normal(size=60)) * (source.random(60) < 0.8)
    others = sizes**0.5 + 0.2 * source.random(60)
    totals = []
    for _ in range(4000):
        chances, is_in = drawn(sizes, 8, 8, source)
        totals.append((others[is_in] / chances[is_in]).sum())
    error = np.std(totals) / len(totals) ** 0.5
    assert abs(np.mean(totals) - others.sum()) < 3 * error
    assert error < 0.01 * others.sum()


def test_probabilities():
    random = 16 / 1000
    assert probability_of(0.0, 0.5, 8.0, 4.0, 16, 1000) == random
    inside = 1 - (1 - 2.0 / 4.0) * (1 - random)
    assert probability_of(2.0, 0.2, 8.0, 4.0, 16, 1000) == pytest.approx(inside)  # 10 is above the last, 8
    assert probability_of(2.0, 0.25, 8.0, 4.0, 16, 1000) == pytest.approx(inside)  # the last itself
    outside = 1 - (1 - 2.0 / 8.0) * (1 - random)
    assert probability_of(2.0, 0.5, 8.0, 4.0, 16, 1000) == pytest.approx(outside)  # by the last, not the next
    assert probability_of(9.0, 1.0, 8.0, 4.0, 16, 1000) == 1
    assert probability_of(1e-9, 0.5, 0.0, 0.0, 16, 1000) == 1  # all with a size are inside
    assert probability_of(1e-9, 0.5, 1e-9, 0.0, 16, 1000) == 1  # as above, and the sample is full
