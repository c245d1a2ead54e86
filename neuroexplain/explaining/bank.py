"""A bank of hypotheses -> the label of a unit: that which `lexical` finds best on its `select` records.

No LLM writes anything. One pass over the bank gives each label's value for every token of the run's
vocabulary (three short forward passes a label, as `lexical` does). Then a unit costs one weighted correlation
for each label, by two matrix products. The label's score on `report` is honest, since it was chosen on
`select`; the more labels there are, the more the best one on `select` overstates.

On 260 neurons of SmolLM2-135M labels score 0.17 on `report` by lexical, another neuron's label 0.00
(docs/decisions.md). They say what words a unit fires on, never in which context.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neuroexplain.errors import NeuroexplainError
from neuroexplain.evidence import VocabularyEntry
from neuroexplain.llm.engine import Engine
from neuroexplain.llm.prompts import Prompt
from neuroexplain.runs import Run
from neuroexplain.runtime.progress import Progress
from neuroexplain.scorers._likelihood import gives_vocabulary
from neuroexplain.scorers.base import RECORDS_OF_CHEAP
from neuroexplain.scorers.lexical import LexicalSimulator, value_of
from neuroexplain.scoring.side_evidence import SideEvidence
from neuroexplain.units import CROP_LENGTH


class LabelBank:
    """The labels of a bank, with what each predicts of every token."""

    def __init__(self, engine: Engine, prompt: Prompt, run: Run) -> None:
        if not gives_vocabulary(engine):
            raise NeuroexplainError(
                "--explainer bank compares all of its labels on every unit, which takes a model in this "
                "process; a server was named.\nName a small one:  --local MODEL  (a hub name, a folder or a "
                ".gguf file)"
            )
        lines = map(str.strip, prompt.text.splitlines())
        self.labels = [line for line in lines if line and not line.startswith("#")]
        self._simulator = LexicalSimulator(engine, run.tokenizer_sha256)
        # [n_tokens + 1, n_labels]; the last row is of tokens that the vocabulary lacks.
        self._values: NDArray[np.float32] = np.zeros((1, len(self.labels)), np.float32)
        self._rows: dict[int, int] = {}  # of _values, by token id

    def read(self, vocabulary: Sequence[VocabularyEntry]) -> Generator[Progress]:
        """Compute what each label predicts of every token."""
        self._rows = {entry.token_id: row for row, entry in enumerate(vocabulary)}
        self._values = np.zeros((len(vocabulary) + 1, len(self.labels)), np.float32)
        columns = self._simulator.likelihood.of_vocabulary(self.labels, vocabulary)
        for column, ratios in enumerate(columns):
            self._values[:-1, column] = value_of(ratios)
            yield Progress("reading the bank", column + 1, len(self.labels), "labels")

    def choose(self, evidence: SideEvidence) -> str | None:
        """The label that fits a side's `select` records best; None if nothing can be compared."""
        token_ids, truth, weights = select_tokens(evidence)
        values = self._values[[self._rows.get(token_id, -1) for token_id in token_ids.tolist()]]
        best = best_correlation(values, truth, weights)
        return None if best is None else self.labels[best]


def select_tokens(
    evidence: SideEvidence,
) -> tuple[NDArray[Any], NDArray[np.float64], NDArray[np.float64]]:
    """Ids, true values and weights, [n] each, of the scored tokens of a side's `select` records.

    As many records are read as `lexical` reads. In runs without samples each weighs the same.
    """
    if evidence.n_sampled:
        drawn = [d for d in evidence.draw("select", RECORDS_OF_CHEAP) if d.record.key not in evidence.leaking]
        records = [(d.record, evidence.first_of(d.record), 1 / d.probability) for d in drawn]
    else:
        records = [(evidence.by_key[t.key], t.first, 1.0) for t in evidence.crops_of("select")]
    ids: list[NDArray[Any]] = [np.zeros(0, np.int64)]
    truth, weights = [np.zeros(0)], [np.zeros(0)]
    for record, first, weight in records:
        crop = slice(first, first + CROP_LENGTH)
        counts = evidence.counts(record)[crop]
        ids.append(record.token_ids[crop][counts])
        truth.append(evidence.truth(record)[crop][counts])
        weights.append(np.full(int(counts.sum()), weight))
    return np.concatenate(ids), np.concatenate(truth), np.concatenate(weights)


def best_correlation(
    values: NDArray[np.float32], truth: NDArray[np.float64], weights: NDArray[np.float64]
) -> int | None:
    """The column of `values`, [n, labels], whose weighted correlation with `truth`, [n], is highest.

    The first of equals. None if the truth or every column is constant.
    """
    if len(truth) < 2 or np.ptp(truth) == 0 or weights.sum() == 0:
        return None
    w = weights / weights.sum()
    x = values - w @ values
    y = truth - w @ truth
    variances = w @ x**2
    varies = (np.ptp(values, axis=0) > 0) & (variances > 0)
    if not varies.any():
        return None
    covariances = (w * y) @ x
    correlations = np.where(varies, covariances / np.sqrt(np.where(varies, variances, 1.0)), -np.inf)
    return int(correlations.round(9).argmax())  # equal columns differ by the order of their sums
