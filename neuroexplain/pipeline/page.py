"""Everything known about one neuron, put together for `show`, the viewer and the API."""

from __future__ import annotations

from collections.abc import Mapping

from neuroexplain.scoring.splits import assign_splits
from neuroexplain.store.engine import Store
from neuroexplain.store.read import list_explanations, list_scores, list_simulations, load_neuron, load_tokens, tokens_of
from neuroexplain.types import NeuronId, NeuronPage, Run, VocabularyEntry


def load_page(
    store: Store, run: Run, neuron_id: NeuronId, vocabulary: Mapping[int, VocabularyEntry] | None = None
) -> NeuronPage:
    """A neuron with its explanations, best headline score first. Raises NotInStore where the run does not hold it.

    Who reads many neurons brings the run's whole vocabulary, so that it is not looked up for each.
    """
    neuron = load_neuron(store, run, neuron_id)
    explanations = list_explanations(store, run.id, neuron_id)
    ids = [e.id for e in explanations if e.id is not None]
    scores = list_scores(store, ids)
    best: dict[int, float] = {}
    for s in scores:
        if s.score.split == "report" and s.score.kind == "top_and_random" and s.score.correlation is not None:
            best[s.explanation_id] = max(best.get(s.explanation_id, -2.0), s.score.correlation)
    explanations.sort(key=lambda e: (not e.chosen, -best.get(e.id or 0, -2.0), e.id or 0))
    simulations = sorted(list_simulations(store, ids), key=lambda s: [e.id for e in explanations].index(s.explanation_id))
    shown = {int(i) for x in neuron.exemplars for i in x.token_ids} | {i for i, _ in (*neuron.promoted, *neuron.suppressed)}
    return NeuronPage(
        run=run,
        neuron=neuron,
        splits=assign_splits(neuron.exemplars),
        tokens=load_tokens(store, run.id, shown) if vocabulary is None else tokens_of(vocabulary, shown),
        explanations=tuple(explanations),
        simulations=tuple(simulations),
        scores=tuple(scores),
    )
