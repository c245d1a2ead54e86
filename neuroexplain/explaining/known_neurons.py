"""Neurons of known behaviour, and how well a simulator predicts them from true and false explanations.

The neurons were made by rules over real text (scripts/make_known_neurons.py), so that the truth of an
explanation is known. A neuron is won if its true explanation has a higher correlation than each of five false
ones. Whole records are scored.
"""

from __future__ import annotations

import gzip
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import fmean

import numpy as np

from neuroexplain.errors import LlmReplyError
from neuroexplain.evidence import Exemplar, VocabularyEntry
from neuroexplain.llm.engine import Usage
from neuroexplain.runtime.in_flight import map_in_flight
from neuroexplain.scorers._simulation import OpenSimulator
from neuroexplain.scoring.correlation import correlation_score
from neuroexplain.units import UnitId

HALVES = ("report", "choose")  # of each kind the first neuron is in `choose`, the second in `report`, ...
NO_TOKENIZER = "strings without ids"  # in place of the subject's tokenizer: the token ids are made up here


@dataclass(frozen=True)
class KnownNeuron:
    """A neuron whose true explanation is known, with its records."""

    name: str
    kind: str
    explanations: tuple[str, ...]  # the true one first
    records: tuple[tuple[int, ...], ...]  # token ids, which number this neuron's token texts
    vocabulary: dict[int, VocabularyEntry]
    activations: np.ndarray  # [n_records * 64], of all records end to end
    n_top: int  # the first records are top ones, strongest first, the others random

    def exemplars(self) -> list[Exemplar]:
        """The records for an explainer. Their peaks may stand anywhere, as those of sampled ones."""
        rows = self.activations.reshape(len(self.records), -1).astype(np.float32)
        return [
            Exemplar(
                unit=UnitId(0, 0),
                kind="sampled",
                rank=rank,
                segment=rank,
                start=0,
                document=None,
                token_offset=None,
                activation=float(row.max()),
                token_ids=np.array(token_ids, np.uint32),
                activations=row,
                side="positive",
            )
            for rank, (token_ids, row) in enumerate(zip(self.records, rows, strict=True))
        ]

    def only(self, places: Sequence[int]) -> KnownNeuron:
        """The same neuron with some of its records."""
        rows = self.activations.reshape(len(self.records), -1)[list(places)]
        return replace(
            self,
            records=tuple(self.records[place] for place in places),
            activations=rows.reshape(-1),
            n_top=sum(place < self.n_top for place in places),
        )


@dataclass(frozen=True)
class Outcome:
    """A neuron's correlations, in the order of its explanations; None if undefined or failed."""

    name: str
    kind: str
    correlations: tuple[float | None, ...]
    reasons: tuple[str, ...]  # of those that are None

    @property
    def true(self) -> float | None:
        return self.correlations[0]

    @property
    def false(self) -> list[float]:
        return [r for r in self.correlations[1:] if r is not None]

    @property
    def margin(self) -> float | None:
        return None if self.true is None or not self.false else self.true - max(self.false)

    @property
    def won(self) -> bool:
        return self.true is not None and all(self.true > r for r in self.false)


def read_neurons(path: Path, n_records: int | None, half: str = "all") -> list[KnownNeuron]:
    """The neurons of a half of the file, with the first n records of each sort, or with all."""
    data = path.read_bytes()
    rows = json.loads(gzip.decompress(data) if path.suffix == ".gz" else data)
    neurons, n_of_kind = [], Counter[str]()
    for row in rows:
        kind = row.get("kind", "other")
        n_of_kind[kind] += 1
        if half not in ("all", HALVES[n_of_kind[kind] % 2]):
            continue
        records = [r for sort in ("top", "random") for r in row[sort][:n_records]]
        ids = {text: i for i, text in enumerate(sorted({t for r in records for t in r["tokens"]}))}
        neurons.append(
            KnownNeuron(
                row["name"],
                kind,
                (row["true"], *row["false"]),
                tuple(tuple(ids[t] for t in r["tokens"]) for r in records),
                {i: VocabularyEntry(i, text, False) for text, i in ids.items()},
                np.concatenate([r["activations"] for r in records]).astype(np.float64),
                len(row["top"][:n_records]),
            )
        )
    return neurons


def correlate(task: tuple[int, KnownNeuron, int], scorer: OpenSimulator) -> tuple[float | None, str]:
    """The correlation of one explanation over all records joined, or None and the reason."""
    _, neuron, which = task
    try:
        predictions = scorer.simulate(neuron.explanations[which], neuron.records, neuron.vocabulary)
    except LlmReplyError as error:
        return None, f"{error.status}: {error.reason}"
    levels = np.concatenate([trial.values for trial in predictions.trials]).astype(np.float64)
    is_scored = ~np.isnan(levels)
    r = correlation_score(levels[is_scored], neuron.activations[is_scored])
    return (None, "a constant side") if r is None else (r, "")


def evaluate(neurons: Sequence[KnownNeuron], scorer: OpenSimulator) -> Iterator[Outcome]:
    """Yield each neuron's outcome as soon as all of its explanations are simulated, in any order."""
    tasks = (
        (place, neuron, i) for place, neuron in enumerate(neurons) for i in range(len(neuron.explanations))
    )
    results: list[dict[int, tuple[float | None, str]]] = [{} for _ in neurons]
    work = partial(correlate, scorer=scorer)
    for (place, neuron, which), result in map_in_flight(work, tasks, scorer.engine.in_flight):
        results[place][which] = result
        if len(results[place]) == len(neuron.explanations):
            correlations, reasons = zip(*(results[place][i] for i in sorted(results[place])), strict=True)
            yield Outcome(neuron.name, neuron.kind, correlations, tuple(sorted(set(reasons) - {""})))


def summarize(outcomes: Sequence[Outcome]) -> dict[str, float | int | None]:
    """Wins and means over neurons. A mean over nothing is null."""

    def mean(values: Sequence[float]) -> float | None:
        return round(fmean(values), 4) if values else None

    return {
        "wins": sum(x.won for x in outcomes),
        "n": len(outcomes),
        "mean_true": mean([x.true for x in outcomes if x.true is not None]),
        "mean_false": mean([r for x in outcomes for r in x.false]),
        "mean_margin": mean([x.margin for x in outcomes if x.margin is not None]),
        "undefined": sum(r is None for x in outcomes for r in x.correlations),
    }


def summarize_kinds(outcomes: Sequence[Outcome]) -> dict[str, dict[str, float | int | None]]:
    """The same of the neurons of each kind."""
    kinds = dict.fromkeys(x.kind for x in outcomes)
    return {kind: summarize([x for x in outcomes if x.kind == kind]) for kind in kinds}


def cost_of(usage: Usage, neurons: Sequence[KnownNeuron], seconds: float) -> dict[str, float | int | None]:
    """Prompt tokens, in all and by scored token and explanation, and seconds."""
    n_scored = sum(len(neuron.activations) * len(neuron.explanations) for neuron in neurons)
    computed = None if usage.cached_tokens is None else usage.prompt_tokens - usage.cached_tokens
    return {
        "tokens": usage.prompt_tokens,
        "computed": computed,
        "computed_per_token": None if computed is None else round(computed / n_scored, 2),
        "seconds": round(seconds, 1),
    }


def packaged_neurons() -> Path:
    """The file of the project's known neurons: inside the package if it was installed from a wheel."""
    package = Path(__file__).resolve().parent.parent
    shipped = package / "_known" / "neurons.json"
    return shipped if shipped.is_file() else package.parent / "tests" / "known" / "neurons.json"
