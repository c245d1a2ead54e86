"""Find explanations by meaning: those nearest to a text, joined with those that hold its words.

Two rankings are made of the explanations that meet all conditions: the DEPTH nearest by their vectors, and
those that hold all words of the text but stop words, shorter texts first. Reciprocal rank fusion joins them.

How the conditions are applied. Words, units, layers and scores each give the ids that meet them, from an
index, if these are not too many (MANY, MANY_SCORES). What is left is looked up in the order of its similarity
until there are enough, and checked for the other conditions. So the bounds change the time, not the rows.

Rejected (docs/decisions.md): any of the words in place of all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from neuroexplain.embedding.ranking import Similarities, best_places, content_words, fuse_ranks
from neuroexplain.runs import QueryRow
from neuroexplain.store.dialect import as_search, matching_ids
from neuroexplain.store.engine import Store
from neuroexplain.store.reader import Reader
from neuroexplain.store.rows import IDS_AT_ONCE, chunks, sql_in
from neuroexplain.store.search import (
    Search,
    all_rows,
    among_units,
    explanation_conditions,
    find_few,
    of_headline,
    query_rows,
    score_conditions,
)

DEPTH = 500  # explanations of each ranking, so a search lists at most twice as many
MANY = 200_000  # ids that meet one condition, read from an index
MANY_SCORES = 20_000  # likewise for scores, which are looked up one by one
MOST_BY_WORDS = 10_000  # words that more explanations hold do not rank
ALL = 1_000_000  # rows: no limit


def query_nearest(store: Store, search: Search, like: Similarities) -> list[QueryRow]:
    """Explanations that meet the conditions of `search`, the best by meaning and words first.

    like: that of all explanations of the run. Ties go to the smaller id; rows of one explanation are in the
    order of scorers. The order of `search` is ignored.
    """
    with store.read() as reader:
        conditions = _Conditions(reader, search, like.explanation_ids)
        nearest = _nearest(conditions, like)
        best = fuse_ranks([nearest, _by_words(conditions, like.text)])[: search.limit]
        rows = []
        if best:
            in_order = replace(search, sort="unit", limit=ALL)
            rows = all_rows(reader, in_order, [*conditions.of_score, f"e.id {sql_in(best)}"], has_ids=True)
        place = {id_: number for number, id_ in enumerate(best)}
        rows.sort(key=lambda row: place[row.id])
        return query_rows(reader, search.run, search.headline, rows[: search.limit])


class _Conditions:
    """The conditions of a search: those that an index answers as a mask, the others as SQL."""

    def __init__(self, reader: Reader, search: Search, ids: NDArray[np.int64]) -> None:
        """ids: of all explanations that have a vector, ascending, [n]."""
        self.reader, self._search, self._ids = reader, search, ids
        self.of_score = score_conditions(search, few=False) if search.needs_score else []
        if search.needs_score:
            self.of_score.append("s.value IS NOT NULL")
        self.mask = np.ones(len(ids), np.bool_)  # which of the ids may meet the conditions
        few = find_few(reader, search)
        if few is not None:
            self._keep(few)
            search = replace(search, words=None, peak_token_ids=None)
        elif search.words is not None and self._keep_few(matching_ids(reader.dialect), MANY):
            search = replace(search, words=None)
        of_run = "SELECT e.id FROM explanations e WHERE e.run_id = :run AND"
        if search.units is not None:
            self._keep_few(f"{of_run} {among_units(search.units)}", MANY)
        if search.layers is not None:
            self._keep_few(f"{of_run} e.layer {sql_in(search.layers)}", MANY)
        if search.needs_score:
            where = ["s.run_id = :run", of_headline(search.headline), *self.of_score]
            scores = f"FROM scores s WHERE {' AND '.join(where)}"
            # The index tells their number, and not their ids, which are looked up one by one.
            n_scores = f"SELECT count(*) FROM (SELECT 1 {scores} LIMIT :n) AS first_scores"
            if reader.value(n_scores, **search.values, n=MANY_SCORES + 1) <= MANY_SCORES:
                self._keep(reader.column(f"SELECT s.explanation_id {scores}", **search.values))
        self._of_explanation = explanation_conditions(search, None, reader.dialect)

    def among(self, ids: Sequence[int], order: str = "") -> list[int]:
        """Those of the ids, which the mask holds, that meet the conditions.

        An order holds within IDS_AT_ONCE of them.
        """
        where = ["e.run_id + 0 = :run", *self._of_explanation]
        if self.of_score:
            scored = ["s.explanation_id = e.id", of_headline(self._search.headline), *self.of_score]
            where.append(f"EXISTS (SELECT 1 FROM scores s WHERE {' AND '.join(scored)})")
        sql = f"SELECT e.id FROM explanations e WHERE {' AND '.join(where)} AND e.id "
        values = self._search.values
        kept: list[int] = []
        for part in chunks(ids, IDS_AT_ONCE):
            kept += self.reader.column(f"{sql}{sql_in(part)} {order}", **values)
        return kept

    def masked(self, ids: Sequence[int]) -> list[int]:
        """Those of the ids that the mask holds, ascending."""
        kept: list[int] = self._ids[self.mask & self._mask_of(ids)].tolist()
        return kept

    def _keep_few(self, sql: str, most: int) -> bool:
        """Leave in the mask the ids that a query gives, if they are at most `most`; whether they are."""
        ids = self.reader.column(f"{sql} LIMIT :n", **{**self._search.values, "n": most + 1})
        if len(ids) <= most:
            self._keep(ids)
        return len(ids) <= most

    def _keep(self, ids: Sequence[int]) -> None:
        self.mask &= self._mask_of(ids)

    def _mask_of(self, ids: Sequence[int]) -> NDArray[np.bool_]:
        mask = np.zeros(len(self._ids), np.bool_)
        values = np.array(ids, np.int64)
        places = np.searchsorted(self._ids, values)
        is_inside = places < len(self._ids)
        places, values = places[is_inside], values[is_inside]
        mask[places[self._ids[places] == values]] = True
        return mask


def _nearest(conditions: _Conditions, like: Similarities) -> list[int]:
    """The DEPTH most similar explanations that meet the conditions."""
    ids, similarities = like.explanation_ids[conditions.mask], like.values[conditions.mask]
    kept: list[int] = []
    n_read, n = 0, 2 * DEPTH
    while n_read < len(ids) and len(kept) < DEPTH:
        candidates = ids[best_places(similarities, n)[n_read:]].tolist()
        meets = set(conditions.among(candidates))
        kept += [id_ for id_ in candidates if id_ in meets]
        n_read, n = min(n, len(ids)), 4 * n
    return kept[:DEPTH]


def _by_words(conditions: _Conditions, text: str) -> list[int]:
    """The DEPTH shortest explanations that hold all content words of the text; none if too many do."""
    words = content_words(text)
    if not words:
        return []
    reader = conditions.reader
    value = as_search(reader.dialect, words)
    ids = reader.column(f"{matching_ids(reader.dialect)} LIMIT :n", words=value, n=MOST_BY_WORDS + 1)
    if not ids or len(ids) > MOST_BY_WORDS:
        return []
    return conditions.among(conditions.masked(ids), "ORDER BY length(e.text), e.id")[:DEPTH]
