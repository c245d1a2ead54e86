"""Texts -> scores on the records of neurons whose truth is known, and the mistakes that a rule makes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from neuroexplain.evidence import texts_in_context
from neuroexplain.explaining.known_neurons import KnownNeuron
from neuroexplain.explaining.rendering import Mistake
from neuroexplain.explaining.replies import UNION
from neuroexplain.explaining.side import worst_mistakes
from neuroexplain.scorers._simulation import OpenSimulator
from neuroexplain.scoring.correlation import correlation_score
from neuroexplain.scoring.named_words import find_named
from neuroexplain.units import CROP_LENGTH


@dataclass(frozen=True)
class Scores:
    """Correlations of one text on the judged records; 0 where one is undefined."""

    all_tokens: float
    beyond_words: float


class Judge:
    """Scores texts on a neuron's records by one simulator. Equal questions are answered once."""

    def __init__(self, simulator: OpenSimulator) -> None:
        self._simulator = simulator
        self._known: dict[tuple[str, str, tuple[int, ...]], Scores] = {}

    def score(self, neuron: KnownNeuron, places: Sequence[int], text: str) -> Scores:
        """The scores of a text on some of the neuron's records."""
        if not text:
            return Scores(0.0, 0.0)
        key = (neuron.name, text, tuple(places))
        if key not in self._known:
            self._known[key] = self._score(neuron.only(places), text)
        return self._known[key]

    def predict(self, neuron: KnownNeuron, text: str) -> list[np.ndarray]:
        """What the text predicts of each token, [64] a record. Of a union the greatest value, as in a run."""
        alone = [
            self._simulator.simulate(hypothesis, neuron.records, neuron.vocabulary).trials
            for hypothesis in text.split(UNION)
        ]
        return [
            np.fmax.reduce([t.values.astype(np.float64) for t in trials])
            for trials in zip(*alone, strict=True)
        ]

    def _score(self, neuron: KnownNeuron, text: str) -> Scores:
        levels = np.concatenate(self.predict(neuron, text))
        texts = [texts_in_context([neuron.vocabulary[i] for i in ids]) for ids in neuron.records]
        usable = ~np.isnan(levels)
        kept = usable & ~np.concatenate([find_named(of_record, text) for of_record in texts])
        whole = correlation_score(levels[usable], neuron.activations[usable])
        beyond = correlation_score(levels[kept], neuron.activations[kept])
        return Scores(whole or 0.0, beyond or 0.0)


def read_places(neuron: KnownNeuron) -> list[int]:
    """The records that the explainer reads: top ones of even rank."""
    return list(range(0, neuron.n_top, 2))


def judged_places(neuron: KnownNeuron) -> list[int]:
    """The other top records, and all random ones."""
    return [*range(1, neuron.n_top, 2), *range(neuron.n_top, len(neuron.records))]


def find_mistakes(neuron: KnownNeuron, rule: str, judge: Judge) -> list[Mistake]:
    """Where a rule is most wrong on the records that were read: crops with the peak in the middle."""
    read = neuron.only(read_places(neuron))
    records, predicted = read.exemplars(), judge.predict(read, rule)
    last = len(records[0].activations) - CROP_LENGTH
    firsts = [min(max(0, record.peak_index - CROP_LENGTH // 2), last) for record in records]
    crops = [slice(first, first + CROP_LENGTH) for first in firsts]
    true = [record.activations[crop] for record, crop in zip(records, crops, strict=True)]
    guessed = [values[crop] for values, crop in zip(predicted, crops, strict=True)]
    return worst_mistakes(records, firsts, true, guessed)
