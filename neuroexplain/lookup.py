"""What is asked of a database alike in the terminal, the viewer, the API and Python: all about one neuron, and a query."""

from __future__ import annotations

import math
from typing import Any

from neuroexplain.errors import NeuroexplainError
from neuroexplain.evidence import Tokens, VocabularyEntry
from neuroexplain.runs import QueryRow, Run, UnitPage
from neuroexplain.scoring.splits import assign_splits
from neuroexplain.store.engine import Store
from neuroexplain.store.explanations import list_explanations, list_predictions, list_scores
from neuroexplain.store.search import query_explanations
from neuroexplain.store.units import load_unit
from neuroexplain.store.vocabulary import find_token_ids, load_tokens, load_vocabulary
from neuroexplain.units import UnitId

SORTS = ("score", "activation", "unit")


def find_explanations(
    store: Store,
    run: Run,
    *,
    peak_token: str | None = None,
    sort: str = "score",
    metric: str | None = None,
    scorer: str | None = None,
    **more: Any,
) -> list[QueryRow]:
    """store.read.query_explanations, with the token that units peak on by its text, and a score by its metric or scorer.

    Raises NeuroexplainError where the vocabulary has no such token, or the order, the metric or the scorer is not known.
    """
    sort = "unit" if sort == "neuron" else sort  # its name in earlier versions
    if sort not in SORTS:
        raise NeuroexplainError(f"Sorting by {sort!r} is not known; there is {', '.join(SORTS)}.")
    peaks = find_token_ids(store, run.id, peak_token) if peak_token else None
    if peaks == []:
        raise NeuroexplainError(
            f"{peak_token!r} is not one token of {run.subject}'s vocabulary. Try a shorter word."
        )
    headline = None
    if metric is not None or scorer is not None:
        from neuroexplain.scorers.base import choose_headline

        headline = choose_headline(run, metric, scorer)
    return query_explanations(
        store, run, peak_token_ids=peaks, sort=sort, headline=headline, scorer=scorer, **more
    )


class Vocabulary(dict[int, VocabularyEntry]):
    """A run's whole vocabulary by token id; an id that the tokenizer does not know is shown as U+FFFD."""

    @classmethod
    def load(cls, store: Store, run_id: int) -> Vocabulary:
        return cls((entry.token_id, entry) for entry in load_vocabulary(store, run_id))

    def __missing__(self, token_id: int) -> VocabularyEntry:
        return VocabularyEntry(token_id, "\ufffd", True)


def load_page(store: Store, run: Run, unit_id: UnitId, vocabulary: Vocabulary | None = None) -> UnitPage:
    """A neuron with its explanations, best headline score first. Raises NotInStore where the run does not hold it.

    Who reads many neurons brings the run's whole vocabulary, so that it is not looked up for each.
    """
    unit = load_unit(store, run, unit_id)
    explanations = list_explanations(store, run.id, unit_id)
    ids = [e.id for e in explanations if e.id is not None]
    scores = list_scores(store, ids)
    best: dict[int, float] = {}
    for s in scores:
        if run.headline.is_of(s.score) and s.score.value is not None:
            best[s.explanation_id] = max(best.get(s.explanation_id, -math.inf), s.score.value)
    explanations.sort(key=lambda e: (not e.chosen, -best.get(e.id or 0, -math.inf), e.id or 0))
    place = {e.id: at for at, e in enumerate(explanations)}
    predictions = sorted(list_predictions(store, ids), key=lambda s: place[s.explanation_id])
    tokens: Tokens | None = vocabulary
    if tokens is None:
        shown = {i for x in unit.exemplars for i in x.token_ids.tolist()}
        tokens = load_tokens(store, run.id, shown | {i for i, _ in (*unit.promoted, *unit.suppressed)})
    return UnitPage(
        run=run,
        unit=unit,
        splits=assign_splits(unit.exemplars),
        tokens=tokens,
        explanations=tuple(explanations),
        predictions=tuple(predictions),
        scores=tuple(scores),
    )
