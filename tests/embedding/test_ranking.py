"""Vectors in 8 bits, and fused ranks."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from neuroexplain.embedding.ranking import (
    EXACT,
    LARGEST,
    Int8Vectors,
    best_places,
    content_words,
    cosines_with,
    fuse_ranks,
    round_direction,
    to_int8,
)

draw = np.random.default_rng(3)


def parts_of(stored: Int8Vectors, *cuts: int) -> list[Int8Vectors]:
    pieces = zip(np.split(stored.numbers, cuts), np.split(stored.scales, cuts), strict=True)
    return [Int8Vectors(numbers, scales) for numbers, scales in pieces]


@pytest.mark.parametrize("dimensions", [1, 26, 256, 4096])
def test_cosines_are_those_of_the_vectors_to_a_hundredth(dimensions):
    vectors = draw.standard_normal((50, dimensions)).astype(np.float32) * draw.uniform(0.01, 90, (50, 1))
    query = draw.standard_normal(dimensions).astype(np.float32)
    exact = vectors @ query / np.linalg.norm(vectors, axis=1) / np.linalg.norm(query)
    assert cosines_with([to_int8(vectors.astype(np.float32))], query) == pytest.approx(exact, abs=0.01)


def test_cosines_equal_sums_of_integers_wherever_a_vector_stands():
    stored = to_int8(np.tile(draw.standard_normal((61, 256)).astype(np.float32), (3, 1)))
    query = draw.standard_normal(256).astype(np.float32)
    direction, factor = round_direction(query)
    sums = stored.numbers.astype(np.int64) @ direction.astype(np.int64)
    plain = (sums.astype(np.float32) * stored.scales) * np.float32(factor)
    for cuts in ((), (1,), (7, 50, 51), tuple(range(1, 183))):
        assert np.array_equal(cosines_with(parts_of(stored, *cuts), query), plain)
    assert np.array_equal(plain[:61], plain[61:122])


@pytest.mark.parametrize("dimensions", [1, 2, 256, 3072, 8192])
@pytest.mark.parametrize("shape", ["equal", "one", "random"])
def test_no_sum_is_beyond_what_float32_holds(dimensions, shape):
    query = {"equal": np.ones(dimensions), "one": np.eye(1, dimensions)[0]}.get(
        shape, draw.standard_normal(dimensions)
    )
    direction, _ = round_direction(query.astype(np.float32))
    worst = int(np.abs(direction.astype(np.int64)).sum()) if shape != "random" else 0
    longest = LARGEST * np.sqrt(dimensions) * np.linalg.norm(direction.astype(np.float64))
    assert max(worst, longest) < EXACT


def test_a_vector_of_zeros_is_like_nothing():
    stored = to_int8(np.array([[0, 0], [3, 4]], np.float32))
    assert cosines_with([stored], np.array([3, 4], np.float32)) == pytest.approx([0, 1], abs=0.01)
    assert cosines_with([stored], np.zeros(2, np.float32)).tolist() == [0, 0]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_value_that_is_not_finite_is_refused(value):
    with pytest.raises(ValueError, match="finite"):
        to_int8(np.array([[1, value]], np.float32))


def test_dimensions_must_agree():
    with pytest.raises(ValueError, match="dimensions"):
        cosines_with([to_int8(np.ones((2, 3), np.float32))], np.ones(4, np.float32))


@given(st.lists(st.integers(0, 5), max_size=30), st.integers(1, 40))
def test_the_best_places_are_the_first_of_a_stable_sort(values, n):
    values = np.array(values, np.float32)
    assert best_places(values, n).tolist() == np.argsort(-values, kind="stable")[:n].tolist()


def test_ranks_are_fused_by_their_reciprocals():
    # b: 1/62 + 1/61, a: 1/61, c: 1/63 + 1/62, d: 1/64
    assert fuse_ranks([["a", "b", "c", "d"], ["b", "c"]]) == ["b", "c", "a", "d"]
    assert fuse_ranks([["a", "b"], ["b", "a"]]) == ["a", "b"]  # equal sums: the first ranking
    assert fuse_ranks([[], []]) == []
    # twice the third place, 2/63, is more than the first place once, 1/61
    assert fuse_ranks([["a", "b", "c"], ["d", "e", "c"]]) == ["c", "a", "d", "b", "e"]


@given(st.permutations(range(12)), st.permutations(range(12)), st.integers(0, 12))
def test_fusion_keeps_every_item_once_and_one_ranking_as_it_is(first, second, n):
    assert sorted(fuse_ranks([first, second[:n]])) == list(range(12))
    assert fuse_ranks([first, []]) == list(first)


def test_stop_words_are_left_out():
    assert content_words("Words about the SEA, the sea and its ships") == ["Words", "SEA", "sea", "ships"]
    assert content_words("to be or not to be") == []
