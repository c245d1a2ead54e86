"""A text of a person's own -> what a run's units do on it, read by a loaded subject."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from neuroexplain.errors import NeuroexplainError, NotInStore
from neuroexplain.evidence import texts_in_context
from neuroexplain.runs import QueryRow, Run
from neuroexplain.sources.base import find_sources
from neuroexplain.store.engine import Store
from neuroexplain.store.search import list_best
from neuroexplain.store.units import load_max_activations
from neuroexplain.units import UnitId

# A text's activations of all units are held in memory: of 512 tokens and Llama-3-8B's neurons 0.9 GB.
MOST_TOKENS = 512
N_KEPT = 4  # texts whose activations are kept, so that another token of one needs no new reading


@dataclass(frozen=True, slots=True)
class StrongUnit:
    """A unit that fires strongly on a token."""

    unit: UnitId
    activation: float
    share: float  # of the unit's greatest activation in its corpus
    row: QueryRow | None  # its best explanation; None if it has none


class Probe:
    """A subject that reads texts of a person's own, one at a time. The last four readings are kept."""

    def __init__(
        self, model: str, dtype: str, device: str = "auto", *, trust_remote_code: bool = False
    ) -> None:
        from neuroexplain.subject.load import load_subject
        from neuroexplain.subject.tokenizer import tokenizer_sha256, vocabulary_entries

        self._subject = load_subject(model, dtype, device, trust_remote_code=trust_remote_code)
        self._vocabulary = {entry.token_id: entry for entry in vocabulary_entries(self._subject.tokenizer)}
        self._sha256 = tokenizer_sha256(self._subject.tokenizer)
        self._lock = threading.Lock()
        self._read = lru_cache(maxsize=N_KEPT)(self._read_text)

    def tokens(self, text: str) -> list[str]:
        """The text's tokens as strings, with the BOS that the tokenizer itself adds.

        Raises NeuroexplainError if the text is empty or too long.
        """
        return texts_in_context([self._vocabulary[i] for i in self._token_ids(text)])

    def activations(self, text: str, run: Run, unit: UnitId) -> tuple[list[str], list[float]]:
        """The text's tokens, and one unit's activation on each.

        Raises NotInStore if the run does not hold the unit, and NeuroexplainError if the model is not the
        run's subject.
        """
        if unit.index >= run.width(unit.layer):
            raise NotInStore(f"There is no unit {unit} in run {run.id}: it holds {run.size}.")
        return self.tokens(text), self._acts(text, run)[unit.layer][:, unit.index].tolist()

    def strongest_units(
        self, store: Store, text: str, run: Run, position: int, limit: int = 20
    ) -> list[StrongUnit]:
        """The units that fire most on the token at a position, relative to their maximum in the corpus.

        Strongest first, ties by unit. Raises NeuroexplainError if the text has no such position, or if the
        model is not the run's subject.
        """
        acts = self._acts(text, run)
        n_tokens = len(acts[run.layers[0]])
        if position >= n_tokens:
            raise NeuroexplainError(f"The text has {n_tokens} tokens, counted from 0; none is {position}.")
        maxima = load_max_activations(store, run.id)
        firing = []
        for layer, values in acts.items():
            for index, value in enumerate(values[position].tolist()):
                greatest = maxima.get((layer, index)) or 0.0
                if greatest > 0 and value > 0:
                    firing.append((value / greatest, UnitId(layer, index), value))
        firing.sort(key=lambda entry: (-entry[0], entry[1]))
        strongest = firing[:limit]
        rows = list_best(store, run, [unit for _, unit, _ in strongest])
        return [StrongUnit(unit, value, share, rows.get(unit)) for share, unit, value in strongest]

    def _acts(self, text: str, run: Run) -> Any:
        """Each layer's activations on the text, [seq, width] float32, by layer."""
        subject = self._subject
        if self._sha256 != run.tokenizer_sha256 or len(subject.layers) != run.n_layers:
            raise self._other_model_error(run, f"it has {len(subject.layers)} layers")
        sources = find_sources(subject, run.kind, run.activation, run.layers)
        for layer, source in sources.items():
            if source.width != run.width(layer):
                raise self._other_model_error(run, f"layer {layer} has {source.width:,} units")
        with self._lock:
            return self._read(text, run.kind, run.activation, run.layers)

    def _other_model_error(self, run: Run, difference: str) -> NeuroexplainError:
        return NeuroexplainError(
            f"The loaded model {self._subject.name} is not the subject of run {run.id}, "
            f"{run.subject} ({run.size}): {difference}."
        )

    def _token_ids(self, text: str) -> list[int]:
        ids = self._subject.tokenizer(text.encode("utf-8", "replace").decode()).input_ids
        if not ids:
            raise NeuroexplainError("The text is empty. Give some words.")
        if len(ids) > MOST_TOKENS:
            raise NeuroexplainError(
                f"The text has {len(ids):,} tokens; at most {MOST_TOKENS} are read at once."
            )
        return list(ids)

    def _read_text(self, text: str, kind: str, activation: str, layers: tuple[int, ...]) -> Any:
        from neuroexplain.subject.probe import read_text

        sources = find_sources(self._subject, kind, activation, layers)
        return read_text(self._subject, self._token_ids(text), sources)
