"""Vectors in 8 bits, their similarity to a text, and the fusion of two rankings (pure)."""

from __future__ import annotations

import re
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

LARGEST = 127  # of a stored number
EXACT = 1 << 24  # up to which float32 holds all integers
FUSION_K = 60  # of reciprocal rank fusion (Cormack et al. 2009)
# Words of a search that say nothing about what is searched for.
STOP_WORDS = frozenset(
    "a about after again all also an and any are as at be because been before being between both but by can "
    "could did do does down during each else every few for from had has have he her here hers him his how i "
    "if in into is it its itself just like me more most my no nor not of off on once only or other our out "
    "over own same she should so some such than that the their them then there these they this those through "
    "to too under until up us very was we were what when where which while who whom whose why will with "
    "would you your".split()
)
Item = TypeVar("Item", bound=Hashable)


@dataclass(frozen=True, slots=True)
class Int8Vectors:
    """Unit vectors as integers: the number `i` of row `r` is `numbers[r, i] * scales[r]`."""

    numbers: NDArray[np.int8]  # [n, dimensions]
    scales: NDArray[np.float32]  # [n]; 0 for a vector of zeros


@dataclass(frozen=True, slots=True)
class Similarities:
    """How similar explanations are to a text."""

    text: str
    explanation_ids: NDArray[np.int64]  # [n], ascending
    values: NDArray[np.float32]  # [n], cosines


def to_int8(vectors: NDArray[np.float32]) -> Int8Vectors:
    """Vectors [n, dimensions] of any length, rounded to unit vectors in 8 bits.

    A row does not depend on the others. Raises ValueError if a value is not finite.
    """
    if not np.isfinite(vectors).all():
        raise ValueError("a vector is not finite")
    peaks = np.abs(vectors).max(axis=1, initial=0).astype(np.float64)
    factors = np.divide(LARGEST, peaks, out=np.zeros_like(peaks), where=peaks > 0)
    numbers = np.rint(vectors * factors[:, None]).astype(np.int8)
    norms = np.sqrt((numbers.astype(np.int64) ** 2).sum(axis=1))
    scales = np.divide(1, norms, out=np.zeros_like(norms), where=norms > 0)
    return Int8Vectors(numbers, scales.astype(np.float32))


def round_direction(vector: NDArray[np.float32]) -> tuple[NDArray[np.float32], float]:
    """A vector as whole numbers, float32 [dimensions], and the factor that makes them a unit vector.

    The numbers are as large as float32 allows: every sum of products with stored numbers is below EXACT, so
    it is exact, whatever the order of addition. Zeros have the factor 0.
    """
    norm = float(np.linalg.norm(vector.astype(np.float64)))
    if norm == 0:
        return np.zeros(len(vector), np.float32), 0.0
    longest = EXACT / (LARGEST * np.sqrt(len(vector))) - np.sqrt(len(vector))  # rounding makes it longer
    numbers = np.rint(vector.astype(np.float64) * (longest / norm))
    return numbers.astype(np.float32), 1 / float(np.linalg.norm(numbers))


def cosines_with(parts: Sequence[Int8Vectors], vector: NDArray[np.float32]) -> NDArray[np.float32]:
    """The cosine of each stored vector, part after part, with a vector [dimensions]: float32 [n].

    0 if either has no length. Exact for the rounded vectors, so that equal texts are equally similar wherever
    they stand. Raises ValueError if dimensions differ.
    """
    direction, factor = round_direction(vector)
    buffer = np.empty((max((len(part.scales) for part in parts), default=0), len(direction)), np.float32)
    cosines = np.empty(sum(len(part.scales) for part in parts), np.float32)
    first = 0
    for part in parts:
        if part.numbers.shape[1] != len(direction):
            raise ValueError(f"{part.numbers.shape[1]} dimensions are not {len(direction)}")
        n = len(part.scales)
        np.copyto(buffer[:n], part.numbers)
        np.dot(buffer[:n], direction, out=cosines[first : first + n])
        cosines[first : first + n] *= part.scales
        cosines[first : first + n] *= np.float32(factor)
        first += n
    return cosines


def best_places(values: NDArray[np.float32], n: int) -> NDArray[np.int64]:
    """The places of the n greatest values, greatest first; of equal ones the first places."""
    if n < len(values):
        least = np.partition(values, len(values) - n)[len(values) - n]
        above = np.flatnonzero(values > least)
        equal = np.flatnonzero(values == least)[: n - len(above)]
        places = np.sort(np.concatenate([above, equal]))
    else:
        places = np.arange(len(values))
    order: NDArray[np.int64] = places[np.argsort(-values[places], kind="stable")]
    return order


def fuse_ranks(rankings: Sequence[Sequence[Item]]) -> list[Item]:
    """Reciprocal rank fusion: an item earns 1 / (FUSION_K + rank) of each ranking that holds it.

    Ranks count from 1. Of equal sums, the item that stands first in an earlier ranking comes first.
    """
    sums: dict[Item, float] = {}
    for ranking in rankings:
        for rank, item in enumerate(ranking, 1):
            sums[item] = sums.get(item, 0.0) + 1 / (FUSION_K + rank)
    return sorted(sums, key=lambda item: -sums[item])


def content_words(text: str) -> list[str]:
    """The words of a text that are not stop words, each once."""
    words = re.findall(r"\w+", text)
    return list(dict.fromkeys(word for word in words if word.lower() not in STOP_WORDS))
