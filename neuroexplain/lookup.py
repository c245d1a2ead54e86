"""Database -> all about one unit, and the rows of a query.

The terminal, the viewer, the API and Python share these two readings, so they show the same.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from neuroexplain.errors import NeuroexplainError
from neuroexplain.evidence import SPLITS, Prediction, RecordKey, Tokens, Unit, VocabularyEntry
from neuroexplain.runs import QueryRow, Run, UnitPage
from neuroexplain.scoring.side_evidence import SideEvidence
from neuroexplain.store.engine import Store
from neuroexplain.store.explanations import list_explanations, list_predictions, list_scores
from neuroexplain.store.runs import list_checks
from neuroexplain.store.search import query_explanations
from neuroexplain.store.units import load_unit
from neuroexplain.store.vocabulary import find_token_ids, load_tokens, load_vocabulary
from neuroexplain.units import Side, UnitId

if TYPE_CHECKING:
    from neuroexplain.embedding.ranking import Similarities

SORTS = ("score", "weakest", "lower", "activation", "unit")


def find_explanations(
    store: Store,
    run: Run,
    *,
    peak_token: str | None = None,
    sort: str | None = None,
    metric: str | None = None,
    scorer: str | None = None,
    like: Similarities | None = None,
    **bounds: Any,
) -> list[QueryRow]:
    """The rows of store.search.query_explanations, in the words of a person.

    peak_token is the text of the token that units peak on. metric and scorer choose the score that is shown,
    sorted by and bounded; without them it is the run's headline. The order is `score` unless another is
    given; with `like` it is that of meaning. Raises NeuroexplainError for a token that is not in the
    vocabulary, for an unknown order, metric or scorer, and for `like` with another order.
    """
    if like is not None and sort is not None:
        raise NeuroexplainError(
            f"A search by meaning has its own order, and {sort!r} was given, too. Leave one of them out."
        )
    sort = {None: "score", "neuron": "unit"}.get(sort, sort)  # neuron: the name in earlier versions
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
        store, run, peak_token_ids=peaks, sort=sort, headline=headline, scorer=scorer, like=like, **bounds
    )


class Vocabulary(dict[int, VocabularyEntry]):
    """A run's whole vocabulary by token id; a token id that the tokenizer does not know is U+FFFD."""

    @classmethod
    def load(cls, store: Store, run_id: int) -> Vocabulary:
        return cls((entry.token_id, entry) for entry in load_vocabulary(store, run_id))

    def __missing__(self, token_id: int) -> VocabularyEntry:
        return VocabularyEntry(token_id, "\ufffd", True)


def load_page(store: Store, run: Run, unit_id: UnitId, vocabulary: Vocabulary | None = None) -> UnitPage:
    """A unit with its explanations: the chosen ones first, then by headline score, best first; ties by id.

    A caller that loads many units passes the run's whole vocabulary: it saves a look-up for each. Raises
    NotInStore if the run does not hold the unit.
    """
    unit = load_unit(store, run, unit_id)
    explanations = list_explanations(store, run.id, unit_id)
    ids = [e.id for e in explanations if e.id is not None]
    scores = list_scores(store, ids)
    best: dict[int, float] = {}
    for stored in scores:
        if run.headline.is_of(stored.score) and stored.score.value is not None:
            earlier = best.get(stored.explanation_id, -math.inf)
            best[stored.explanation_id] = max(earlier, stored.score.value)
    explanations.sort(key=lambda e: (not e.chosen, -best.get(e.id or 0, -math.inf), e.id or 0))
    place = {e.id: number for number, e in enumerate(explanations)}
    of_rules = [e.id for e in explanations if e.id is not None and e.rule is not None]

    def by_place(prediction: Prediction) -> int:
        return place[prediction.explanation_id]

    return UnitPage(
        run=run,
        unit=unit,
        splits=SideEvidence.of(run, unit, run.sides[0]).splits,
        tokens=_load_unit_tokens(store, run.id, unit) if vocabulary is None else vocabulary,
        explanations=tuple(explanations),
        predictions=tuple(sorted(list_predictions(store, ids), key=by_place)),
        scores=tuple(scores),
        rule_predictions=tuple(sorted(list_predictions(store, of_rules, "rule"), key=by_place)),
        rule_scores=tuple(list_scores(store, of_rules, "rule")),
        probabilities=_load_probabilities(run, unit),
        checks=tuple(list_checks(store, run.id)),
    )


def _load_probabilities(run: Run, unit: Unit) -> dict[tuple[RecordKey, Side], float]:
    """With which probability each random and sampled record was drawn, for each side of the run.

    Empty for runs whose records are split by rank: they do not tell of how many segments.
    """
    if run.split_rule == "ranks":
        return {}
    probabilities: dict[tuple[RecordKey, Side], float] = {}
    for side in run.sides:
        evidence = SideEvidence.of(run, unit, side)
        drawn = {d.record.segment: d.probability for split in SPLITS for d in evidence.draw(split)}
        for key, record in evidence.by_key.items():  # one that was drawn twice has one probability
            if record.kind in ("random", "sampled") and record.segment in drawn:
                probabilities[key, side] = drawn[record.segment]
    return probabilities


def _load_unit_tokens(store: Store, run_id: int, unit: Unit) -> Tokens:
    """The tokens of a unit's records, and those that it promotes and suppresses."""
    token_ids = {token_id for x in unit.exemplars for token_id in x.token_ids.tolist()}
    token_ids.update(token_id for token_id, _ in (*unit.promoted, *unit.suppressed))
    return load_tokens(store, run_id, token_ids)
