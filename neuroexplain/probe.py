"""Try a text: a loaded subject answers what a run's neurons do on it."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from neuroexplain.errors import NeuroexplainError, NotInStore
from neuroexplain.runs import QueryRow, Run
from neuroexplain.sources.base import find_sources
from neuroexplain.store.engine import Store
from neuroexplain.store.search import list_best
from neuroexplain.store.units import load_max_activations
from neuroexplain.units import UnitId

LONGEST = 512  # tokens of a text that is tried


@dataclass(frozen=True, slots=True)
class Strongest:
    """One of the neurons that fire most on a token."""

    unit: UnitId
    activation: float
    share: float  # of the neuron's greatest activation in its corpus
    row: QueryRow | None  # its best explanation; None where it has none


class Probe:
    """A subject that reads texts of a person's own. One text at a time; the last few stay at hand."""

    def __init__(self, model: str, dtype: str, device: str = "auto") -> None:
        from neuroexplain.subject.load import load_subject, tokenizer_sha256

        self._subject = load_subject(model, dtype, device)
        self._sha256 = tokenizer_sha256(self._subject.tokenizer)
        self._lock = threading.Lock()
        self._read = lru_cache(maxsize=4)(self._read_text)

    def tokens(self, text: str) -> list[str]:
        """The text's tokens as strings, with the BOS that the tokenizer itself adds."""
        return [
            self._subject.tokenizer.decode([i], clean_up_tokenization_spaces=False) for i in self._ids(text)
        ]

    def activations(self, text: str, run: Run, neuron: UnitId) -> tuple[list[str], list[float]]:
        """The tokens and one neuron's activation on each. Raises NeuroexplainError for another model's run."""
        if neuron.index >= run.width(neuron.layer):
            raise NotInStore(f"There is no unit {neuron} in run {run.id}: it holds {run.size}.")
        return self.tokens(text), self._acts(text, run)[neuron.layer][:, neuron.index].tolist()

    def strongest(self, store: Store, text: str, run: Run, position: int, limit: int = 20) -> list[Strongest]:
        """The neurons with the greatest activation on a token, relative to their maximum in the corpus; ties by neuron."""
        acts = self._acts(text, run)
        n_tokens = len(acts[run.layers[0]])
        if position >= n_tokens:
            raise NeuroexplainError(
                f"The text has {n_tokens} tokens, counted from 0; {position} was asked for."
            )
        maxima = load_max_activations(store, run.id)
        found = []
        for layer, values in acts.items():
            for neuron, value in enumerate(values[position].tolist()):
                greatest = maxima.get((layer, neuron)) or 0.0
                if greatest > 0 and value > 0:
                    found.append((value / greatest, UnitId(layer, neuron), value))
        found.sort(key=lambda one: (-one[0], one[1]))
        rows = list_best(store, run, [neuron for _, neuron, _ in found[:limit]])
        return [Strongest(neuron, value, share, rows.get(neuron)) for share, neuron, value in found[:limit]]

    def _acts(self, text: str, run: Run) -> Any:
        subject = self._subject
        if self._sha256 != run.tokenizer_sha256 or len(subject.layers) != run.n_layers:
            raise self._is_another(run, f"it has {len(subject.layers)} layers")
        sources = find_sources(subject, run.kind, run.activation, run.layers)
        different = next(
            (layer for layer, source in sources.items() if source.width != run.width(layer)), None
        )
        if different is not None:
            raise self._is_another(run, f"layer {different} has {sources[different].width:,} units")
        with self._lock:
            return self._read(text, run.kind, run.activation, run.layers)

    def _is_another(self, run: Run, why: str) -> NeuroexplainError:
        return NeuroexplainError(
            f"The loaded model {self._subject.name} is not the subject of run {run.id}, {run.subject} ({run.size}): {why}."
        )

    def _ids(self, text: str) -> list[int]:
        ids = self._subject.tokenizer(text.encode("utf-8", "replace").decode()).input_ids
        if not ids:
            raise NeuroexplainError("The text is empty. Give some words.")
        if len(ids) > LONGEST:
            raise NeuroexplainError(f"The text has {len(ids):,} tokens; at most {LONGEST} are read at once.")
        return list(ids)

    def _read_text(self, text: str, kind: str, activation: str, layers: tuple[int, ...]) -> Any:
        from neuroexplain.subject.probe import read_text

        sources = find_sources(self._subject, kind, activation, layers)
        return read_text(self._subject, self._ids(text), sources)
