"""Explanations as a value for each token: from the unit's own activations, and made worse."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from score_truth.corpus import Corpus

Table = NDArray[np.float32]  # an explanation: a prediction for each token of the vocabulary
LEAST_VISITS = 2  # of a token in `explain` for its mean to be a prediction
CHECKS = ("half dropped", "as many wrong", "five times too broad")


def make_tables(truth: NDArray[np.float64], corpus: Corpus) -> dict[str, Table | None]:
    """Explanations made from the unit's mean activation by token in `explain`, and worse ones.

    The concept is the set of tokens with the largest means, as many as have half of the sum of squares.
    """
    is_explain = corpus.splits == 0
    ids, values = corpus.token_ids[is_explain].reshape(-1), truth[is_explain].reshape(-1)
    counts = np.bincount(ids, minlength=corpus.vocabulary)
    sums = np.bincount(ids, values, minlength=corpus.vocabulary)
    means = np.where(counts >= LEAST_VISITS, sums / np.maximum(counts, 1), 0.0)
    generator = np.random.default_rng(len(ids))
    tables: dict[str, Table | None] = {"mean by token": means.astype(np.float32)}
    concept = choose_concept(means, counts)
    if concept is None:
        return tables
    n_segments = count_segments(concept, corpus)
    dropped = concept.copy()
    members = generator.permutation(np.flatnonzero(concept))
    dropped[drop_half(members, counts)] = False
    tables |= {"concept": concept.astype(np.float32), CHECKS[0]: dropped.astype(np.float32)}
    for check, factor in ((CHECKS[1], 2), (CHECKS[2], 5)):
        wider = widen(concept, factor, n_segments, counts, corpus, generator)
        tables[check] = None if wider is None else wider.astype(np.float32)
    return tables


def choose_concept(means: NDArray[np.float64], counts: NDArray[np.int64]) -> NDArray[np.bool_] | None:
    """The tokens with the largest means that have half of the sum of squares; None if it is a single one."""
    strength = counts * np.maximum(means, 0) ** 2
    order = np.argsort(-means, kind="stable")
    covered = np.cumsum(strength[order]) / max(float(strength.sum()), 1e-30)
    concept = np.zeros(len(means), np.bool_)
    concept[order[: int(np.searchsorted(covered, 0.5)) + 1]] = True
    concept &= counts > 0
    return concept if concept.sum() >= 2 else None


def drop_half(members: NDArray[np.int64], counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Members that have half of all their occurrences together."""
    covered = np.cumsum(counts[members]) / counts[members].sum()
    return members[: int(np.searchsorted(covered, 0.5)) + 1][: len(members) - 1]


def count_segments(concept: NDArray[np.bool_], corpus: Corpus) -> int:
    """How many segments have a token of the concept."""
    return int(concept[corpus.token_ids].any(axis=1).sum())


def widen(
    concept: NDArray[np.bool_],
    factor: int,
    n_segments: int,
    counts: NDArray[np.int64],
    corpus: Corpus,
    generator: np.random.Generator,
) -> NDArray[np.bool_] | None:
    """The concept with wrong tokens, so that it fires in `factor` times as many segments.

    None if the corpus has not so many segments.
    """
    if factor * n_segments > 0.9 * len(corpus.token_ids):
        return None
    wider = concept.copy()
    hit = concept[corpus.token_ids].any(axis=1)
    others = generator.permutation(np.flatnonzero((counts > 0) & ~concept))
    by_token = np.argsort(corpus.token_ids.reshape(-1), kind="stable")
    sorted_ids = corpus.token_ids.reshape(-1)[by_token]
    for token_id in others.tolist():
        first, last = np.searchsorted(sorted_ids, [token_id, token_id + 1])
        own = by_token[first:last] // corpus.token_ids.shape[1]
        if hit.sum() + len(np.unique(own)) > 1.1 * factor * n_segments:
            continue
        wider[token_id] = True
        hit[own] = True
        if hit.sum() >= factor * n_segments:
            return wider
    return None
