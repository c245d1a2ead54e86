"""How evidence is split and drawn: passages, scored halves, sizes, draws and probabilities (pure).

Splits. A passage is a piece of a document of at most 8,192 tokens, short pieces grouped by place. A hash of
the run's seed and the passage gives its split, the same for every unit, so no text that an explainer of any
unit saw is ever scored. A segment has the split of its 128 tokens; if two splits differ, it has none. One
split a document was no choice: of 30-token documents, 6% of the segments would have one.

Draws. Random records are the segments with the smallest hash of a split. Sampled records are drawn with a
probability proportional to size, the sum of squared activations of the scored half, by priority sampling
(Duffield, Lund, Thorup 2007): each segment has a number u in (0, 1] by hash, and the n largest of size / u
are kept. The next largest, the threshold, tells with which probability each of them was drawn.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from neuroexplain.evidence import SPLITS, Split
from neuroexplain.stable_hash import stable_hash
from neuroexplain.units import CROP_LENGTH, SEGMENT_LENGTH

PASSAGE_LENGTH = 1024  # tokens: short pieces that begin in the same 1,024 tokens are one passage
PIECE_LENGTH = 8192  # tokens: longer documents are cut, so that one document is not all in one split
LEAST_PASSAGES = 24  # visited text with fewer has splits of very unequal size
RANDOM_SHARES = {"explain": 1, "select": 1, "report": 2}
SAMPLED_SHARES = {"explain": 2, "select": 1, "report": 2}
GUESS_FLOOR = 0.5  # of the mean guess: docs/scores.md
NO_SPLIT = -1  # in arrays, where a split is its place in SPLITS


@lru_cache(maxsize=1 << 16)
def split_of_passage(seed: int, passage: int) -> Split:
    """The split of a passage: by hash, three eighths explain, two select, three report."""
    eighth = stable_hash(seed, "passage", passage) % 8
    return "explain" if eighth < 3 else "select" if eighth < 5 else "report"


def passages_of(document_places: NDArray[np.int64], offsets: NDArray[np.int64]) -> NDArray[np.int64]:
    """The passages of tokens: of the same shape as both arguments.

    document_places: where each token's document begins in the token stream. offsets: the token's place in its
    document.
    """
    return (document_places + PIECE_LENGTH * (offsets // PIECE_LENGTH)) // PASSAGE_LENGTH


def passages_of_segments(
    segments: NDArray[np.int64], document_places: NDArray[np.int64] | None, stride: int = SEGMENT_LENGTH
) -> NDArray[np.int64]:
    """The passages of the segments' tokens, [n, 128]: see split_segments."""
    places = segments[:, None].astype(np.int64) * stride + np.arange(SEGMENT_LENGTH)
    if document_places is None:
        return places // PASSAGE_LENGTH
    begins = document_places[np.searchsorted(document_places, places, "right") - 1]
    return passages_of(begins, places - begins)


def split_segments(
    seed: int,
    segments: NDArray[np.int64],
    document_places: NDArray[np.int64] | None,
    stride: int = SEGMENT_LENGTH,
) -> NDArray[np.int8]:
    """The split of each segment as its place in SPLITS, [n]; NO_SPLIT if its tokens have different ones.

    document_places: the first token of each document in the token stream, ascending; None if documents are
    not known. Then a passage is a piece of 1,024 tokens of the stream. stride: tokens from one segment number
    to the next.
    """
    passages = passages_of_segments(segments, document_places, stride)
    distinct, index = np.unique(passages, return_inverse=True)
    codes = [SPLITS.index(split_of_passage(seed, passage)) for passage in distinct.tolist()]
    splits = np.array(codes, np.int8)[index.reshape(passages.shape)]
    least, greatest = splits.min(axis=1), splits.max(axis=1)
    return np.where(least == greatest, least, np.int8(NO_SPLIT))


def count_passages(segments: NDArray[np.int64], document_places: NDArray[np.int64]) -> int:
    """How many passages the segments' tokens are of, or more than LEAST_PASSAGES if that is sure."""
    if len(segments) > LEAST_PASSAGES * PIECE_LENGTH // SEGMENT_LENGTH:
        return LEAST_PASSAGES + 1  # a passage has no more tokens than a piece
    return len(np.unique(passages_of_segments(segments, document_places)))


def half_of(seed: int, segment: int) -> int:
    """Which half of a segment's tokens 64..127 is scored: 0 for the first 32, 1 for the last."""
    return stable_hash(seed, "half", segment) % 2


def scored_first(seed: int, segment: int) -> int:
    """The first scored token of a random or sampled record: 0 or 32."""
    return CROP_LENGTH * half_of(seed, segment)


def random_key(seed: int, segment: int) -> int:
    """The hash by which random records are drawn: a split keeps the smallest."""
    return stable_hash(seed, "random", segment)


def uniform_of(seed: int, segment: int) -> float:
    """A segment's number in (0, 1], the same for all units, by which its size is divided."""
    return (stable_hash(seed, "sampled", segment) + 1) / 2**64


def background_uniform_of(seed: int, segment: int) -> float:
    """A segment's number in (0, 1], by which the guess is divided where a background is drawn from."""
    return (stable_hash(seed, "background", segment) + 1) / 2**64


def sizes_of_guesses(guesses: NDArray[np.float64], n_background: int) -> NDArray[np.float64]:
    """The sizes by which records of a background are drawn: guesses, in units of their mean, and a floor.

    The first n_background guesses are of the background. Without a guess above 0 all sizes are equal. The
    floor gives every record a chance, since a guess misses places where an explanation fires.
    """
    mean = float(guesses[:n_background].mean()) if n_background else 0.0
    return GUESS_FLOOR + (guesses / mean if mean > 0 else 0.0 * guesses)


def share_out(n: int, shares: Mapping[str, int]) -> dict[Split, int]:
    """How many of n records each split gets; the remainder goes to `report`."""
    one = n // sum(shares.values())
    counts = {split: one * shares[split] for split in SPLITS}
    return counts | {"report": n - counts["explain"] - counts["select"]}


def sum_squares(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """The sum of relu(value)^2 over the last axis of 32, in float32.

    By five halvings, each adding the second half to the first: the same bits as collecting gives.
    """
    squares = np.square(np.maximum(values.astype(np.float32), np.float32(0)))
    while squares.shape[-1] > 1:
        half = squares.shape[-1] // 2
        squares = squares[..., :half] + squares[..., half:]
    sums: NDArray[np.float32] = squares[..., 0]
    return sums


def probability_of(
    size: float, uniform: float, last: float, threshold: float, n_random: float, n_segments: int
) -> float:
    """The probability with which a segment of `report` is among the random or the sampled records.

    size and uniform are the segment's. last: the smallest size / uniform in the sample, threshold: the
    largest outside, 0 if every segment with a size above 0 is in the sample. A record inside was drawn given
    the threshold; one outside, given the last inside: with the threshold for both, totals come out 2.7% too
    low. n_random of the split's n_segments are random ones; a fraction of it where they are drawn from again.
    """
    random = n_random / n_segments
    if size <= 0:
        return random
    bound = threshold if size / uniform >= last else last
    sampled = 1.0 if bound == 0 else min(1.0, size / bound)
    return 1 - (1 - sampled) * (1 - random)
