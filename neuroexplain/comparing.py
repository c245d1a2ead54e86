"""Database -> two explainers, models or runs side by side, in the words of a person.

The terminal, the viewer, the API and Python share this reading.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from neuroexplain.comparison import ORDERS, Compared, ComparedRow, Comparison, sort_pairs, summarize_pairs
from neuroexplain.errors import NeuroexplainError
from neuroexplain.evidence import Headline
from neuroexplain.formatting import explained_by, headline_name, short_name
from neuroexplain.runs import Run
from neuroexplain.scorers.base import choose_headline
from neuroexplain.store.comparisons import list_explainers, list_pairs, list_scorers, load_compared_rows
from neuroexplain.store.dialect import as_search, search_words
from neuroexplain.store.engine import Store
from neuroexplain.store.runs import list_runs, load_run
from neuroexplain.store.search import Search
from neuroexplain.store.vocabulary import find_token_ids
from neuroexplain.units import UnitId


def compare(
    store: Store,
    *,
    runs: Sequence[int | None] = (None,),
    explainers: Sequence[str] = (),
    models: Sequence[str] = (),
    text: str | None = None,
    layers: Collection[int] | None = None,
    units: Collection[UnitId] | None = None,
    peak_token: str | None = None,
    metric: str | None = None,
    scorer: str | None = None,
    sort: str | None = None,
) -> Comparison:
    """The explanations of two runs, explainers or models, over the units that both explain.

    Each of `runs`, `explainers` and `models` holds one value for both sides, or one for each; without one a
    side has all that its run holds, which must be by one explainer and model. Both are scored by the same
    scorer, model and metric. Raises NeuroexplainError where that cannot be.
    """
    if sort is not None and sort not in ORDERS:
        raise NeuroexplainError(f"Sorting by {sort!r} is not known here; there is {', '.join(ORDERS)}.")
    choices = {"runs": runs, "explainers": explainers, "models": models}
    for name, values in choices.items():
        if len(values) > 2:
            raise NeuroexplainError(f"--{name} takes two, like A,B, or one for both; it has {len(values)}.")
    for run_id in runs:
        load_run(store, run_id)  # a run that is not there is told before what its sides lack
    first, second = (_choose(store, *(_of_side(values, n) for values in choices.values())) for n in (0, 1))
    if first == second:
        raise NeuroexplainError(
            f"Both are {describe(first)}. Name what differs: --runs 1,2, --explainers A,B or --models A,B."
        )
    _check_same_units(first.run, second.run)
    headline, its_scorer, notes = _choose_score(store, first, second, metric, scorer)
    search = Search(
        run=first.run,
        headline=headline,
        words=None if text is None else as_search(store.dialect, search_words(text)),
        layers=layers,
        units=units,
        peak_token_ids=find_token_ids(store, first.run.id, peak_token) if peak_token else None,
        scorer=its_scorer[0],
        min_score=None,
        max_score=None,
        chosen_only=True,
        sort="unit",
        limit=0,
    )
    pairs, n_explained = list_pairs(store, first, second, its_scorer, search)
    return Comparison(
        first=first,
        second=second,
        headline=headline,
        scorer=its_scorer[0],
        scorer_model=its_scorer[1],
        notes=notes,
        summary=summarize_pairs(pairs, n_explained),
        pairs=sort_pairs(pairs, sort or "second"),
    )


def load_rows(store: Store, comparison: Comparison, limit: int, offset: int = 0) -> list[ComparedRow]:
    """Some of a comparison's units with their texts, in its order."""
    c = comparison
    pairs = c.pairs[offset : offset + limit]
    return load_compared_rows(store, c.first, c.second, (c.scorer, c.scorer_model), c.headline, pairs)


def list_compared(store: Store) -> list[Compared]:
    """All that can be compared: of each finished run, every explainer and model."""
    finished = [run for run in list_runs(store) if run.status == "finished"]
    return [Compared(run, *names) for run in finished for names in list_explainers(store, run.id)]


def describe(compared: Compared) -> str:
    """One of the two in a few words."""
    return f"{explained_by(compared.explainer, compared.model)} (run {compared.run.id})"


def _of_side(values: Sequence[Any], side: int) -> Any:
    """The value for the first or second side; None if there is none."""
    return values[min(side, len(values) - 1)] if values else None


def _choose(store: Store, run_id: int | None, explainer: str | None, model: str | None) -> Compared:
    run = load_run(store, run_id)
    stored = list_explainers(store, run.id)
    fitting = [
        (its_explainer, its_model)
        for its_explainer, its_model in stored
        if explainer in (None, its_explainer) and model in (None, its_model, short_name(its_model))
    ]
    if len(fitting) == 1:
        return Compared(run, *fitting[0])
    by = "; ".join(explained_by(*names) for names in stored) or "nobody"
    if fitting:
        raise NeuroexplainError(
            f"Run {run.id} is explained by {by}. Name one for each side, by --explainers A,B or --models A,B."
        )
    asked_for = " and ".join(name for name in (explainer, model) if name)
    by_whom = f" by {asked_for}" if asked_for else ""
    raise NeuroexplainError(
        f"Run {run.id} has no explanation{by_whom}: it is explained by {by}.\n"
        "See what there is:  neuroexplain runs"
    )


def _check_same_units(first: Run, second: Run) -> None:
    """Raises NeuroexplainError unless a unit of one run is the same unit in the other."""
    facts = {
        "model": [short_name(run.subject) for run in (first, second)],
        "kind of units": [run.kind for run in (first, second)],
        "activation": [run.activation for run in (first, second)],
    }
    weights = [run.versions.get("weights") for run in (first, second)]
    if None not in weights and len(set(weights)) == 1:
        del facts["model"]
    for name, (a, b) in facts.items():
        if a != b:
            raise NeuroexplainError(
                f"The {name} of run {first.id} is {a}, that of run {second.id} is {b}: their units are not "
                "the same, so there is nothing to compare unit by unit."
            )


def _choose_score(
    store: Store, first: Compared, second: Compared, metric: str | None, scorer: str | None
) -> tuple[Headline, tuple[str, str], tuple[str, ...]]:
    """A score that both have, its scorer and model (the one with most scores), and notes for the reader."""
    own = [choose_headline(compared.run, metric, scorer) for compared in (first, second)]
    for headline in dict.fromkeys(own):
        counts = [list_scorers(store, compared, headline) for compared in (first, second)]
        common = {
            key: min(n, counts[1][key])
            for key, n in counts[0].items()
            if key in counts[1] and scorer in (None, key[0])
        }
        if common:
            chosen = max(sorted(common), key=lambda key: common[key])
            return headline, chosen, _notes(first, second, own, headline, chosen, common)
    names = " and ".join(dict.fromkeys(headline_name(headline) for headline in own))
    held = [
        f"{describe(compared)} has " + (", ".join(_scorer_names(store, compared, own)) or "no score")
        for compared in (first, second)
    ]
    raise NeuroexplainError(
        f"The two have no score in common ({names}): {'; '.join(held)}.\n"
        "Score both by one scorer:  neuroexplain score UNITS --scorer S --run N"
        + (" --bills" if len(set(own)) > 1 else "")
    )


def _scorer_names(store: Store, compared: Compared, headlines: Sequence[Headline]) -> list[str]:
    return [
        f"{headline_name(headline)} by {explained_by(*key)}"
        for headline in dict.fromkeys(headlines)
        for key in list_scorers(store, compared, headline)
    ]


def _notes(
    first: Compared,
    second: Compared,
    own: Sequence[Headline],
    headline: Headline,
    scorer: tuple[str, str],
    common: Collection[tuple[str, str]],
) -> tuple[str, ...]:
    notes = []
    if own[0] != own[1]:
        names = [headline_name(h) for h in own]
        notes.append(
            f"The headline of run {first.run.id} is {names[0]}, that of run {second.run.id} {names[1]}: "
            f"compared by {headline_name(headline)}, which both have."
        )
    others = [explained_by(*key) for key in sorted(common) if key != scorer]
    if others:
        notes.append(f"Scored by {', '.join(others)} too: --scorer chooses.")
    if first.run.id != second.run.id and text_read(first.run) != text_read(second.run):
        notes.append("The two runs read different text, so a difference may be that of the text.")
    return tuple(notes)


def text_read(run: Run) -> tuple[Any, ...]:
    """What tells the text of two runs apart."""
    return run.config.get("dataset"), run.n_segments, run.n_tokens, run.seed
