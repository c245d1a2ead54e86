"""Find explanations by meaning: those nearest to a text, joined with those that hold its words.

Two rankings are made of the explanations that meet all conditions: the DEPTH nearest by their vectors, and
those that hold all words of the text but stop words, shorter texts first. Reciprocal rank fusion joins them.

How the conditions are applied. If at most FEW explanations meet them, their ids are read first. If more do,
explanations are looked up in the order of their similarity until there are enough. Both give the same rows.

Rejected (docs/decisions.md): any of the words in place of all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from neuroexplain.embedding.ranking import Similarities, best_places, content_words, fuse_ranks
from neuroexplain.runs import QueryRow
from neuroexplain.store.dialect import as_search, matching_ids
from neuroexplain.store.engine import Store
from neuroexplain.store.reader import Reader
from neuroexplain.store.rows import IDS_AT_ONCE, chunks, sql_in
from neuroexplain.store.search import (
    Search,
    all_rows,
    explanation_conditions,
    find_few,
    of_headline,
    query_rows,
    score_conditions,
)

DEPTH = 500  # explanations of each ranking, so a search lists at most twice as many
FEW = 10_000  # explanations up to which those that meet the conditions are read first
MOST_BY_WORDS = 10_000  # words that more explanations hold do not rank
ALL = 1_000_000  # rows: no limit


def query_nearest(store: Store, search: Search, like: Similarities) -> list[QueryRow]:
    """Explanations that meet the conditions of `search`, the best by meaning and words first.

    like: that of all explanations of the run. Ties go to the smaller id; rows of one explanation are in the
    order of scorers. The order of `search` is ignored.
    """
    with store.read() as reader:
        conditions = _Conditions(reader, search)
        nearest = _nearest(conditions, like)
        best = fuse_ranks([nearest, _by_words(conditions, like.text)])[: search.limit]
        rows = []
        if best:
            in_order = replace(search, sort="unit", limit=ALL)
            rows = all_rows(reader, in_order, [*conditions.of_row, f"e.id {sql_in(best)}"], has_ids=True)
        place = {id_: number for number, id_ in enumerate(best)}
        rows.sort(key=lambda row: place[row.id])
        return query_rows(reader, search.run, search.headline, rows[: search.limit])


class _Conditions:
    """The conditions of a search as SQL."""

    def __init__(self, reader: Reader, search: Search) -> None:
        self.reader, self.search = reader, search
        self._has_ids = search.words is not None or search.peak_token_ids is not None
        self._of_explanation = explanation_conditions(search, find_few(reader, search), reader.dialect)
        self._of_score = score_conditions(search, few=False) if search.needs_score else []
        self.of_row = [*self._of_explanation, *self._of_score]
        if search.needs_score:
            self.of_row.append("s.value IS NOT NULL")

    @property
    def are_narrow(self) -> bool:
        """Whether they may leave out most explanations."""
        search = self.search
        return self._has_ids or search.needs_score or search.layers is not None or search.units is not None

    def all_ids(self, most: int) -> list[int] | None:
        """The ids of all explanations that meet the conditions; None if there are more than `most`.

        An id with scores by several scorers may stand several times.
        """
        run = "e.run_id + 0 = :run" if self._has_ids else "e.run_id = :run"
        sql = f"SELECT e.id FROM explanations e WHERE {' AND '.join([run, *self._of_explanation])} LIMIT :n"
        if self.search.needs_score:
            where = ["s.run_id = :run", of_headline(self.search.headline), *self.of_row]
            sql = (
                "SELECT e.id FROM scores s JOIN explanations e ON e.id = s.explanation_id "
                f"WHERE {' AND '.join(where)} LIMIT :n"
            )
        ids = self.reader.column(sql, n=most + 1, **self.search.values)
        return ids if len(ids) <= most else None

    def among(self, ids: Sequence[int], order: str = "") -> list[int]:
        """Those of the ids that meet the conditions. An order holds within IDS_AT_ONCE of them."""
        where = ["e.run_id + 0 = :run", *self._of_explanation]
        if self.search.needs_score:
            scored = ["s.explanation_id = e.id", of_headline(self.search.headline), "s.value IS NOT NULL"]
            scored += self._of_score
            where.append(f"EXISTS (SELECT 1 FROM scores s WHERE {' AND '.join(scored)})")
        sql = f"SELECT e.id FROM explanations e WHERE {' AND '.join(where)} AND e.id "
        values = self.search.values
        kept: list[int] = []
        for part in chunks(ids, IDS_AT_ONCE):
            kept += self.reader.column(f"{sql}{sql_in(part)} {order}", **values)
        return kept


def _nearest(conditions: _Conditions, like: Similarities) -> list[int]:
    """The DEPTH most similar explanations that meet the conditions."""
    ids, similarities = like.explanation_ids, like.values
    allowed = conditions.all_ids(FEW) if conditions.are_narrow else None
    if allowed is not None:
        is_allowed = np.isin(ids, np.array(allowed, np.int64))
        ids, similarities = ids[is_allowed], similarities[is_allowed]
        nearest: list[int] = ids[best_places(similarities, DEPTH)].tolist()
        return nearest
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
    ids = reader.column(matching_ids(reader.dialect), words=value, n=MOST_BY_WORDS + 1)
    if not ids or len(ids) > MOST_BY_WORDS:
        return []
    return conditions.among(sorted(ids), "ORDER BY length(e.text), e.id")[:DEPTH]
