"""Measure how often a true explanation scores above false ones, on neurons of known behaviour:

    python scripts/eval_simulators.py --neurons tests/known/neurons.json --simulator lexical
    python scripts/eval_simulators.py --neurons FILE.json --simulator digits --local MODEL|--server URL

FILE holds a list of {"name", "kind", "true", "false": [5], "top": [{"tokens": [64 strings], "activations":
[64]}], "random": [...]}, and may be a .json.gz; a kind is a word like "syntax" and may be missing. Of each
kind every second neuron is in the half `choose`, by which a simulator is chosen, the others in `report`, by
which it is reported. Whole records are scored, without crops. A neuron is won if its true explanation
has a higher correlation than every false one. An undefined correlation or a failed simulation is counted
apart and is in no mean; a neuron whose true explanation has no correlation is not won. `tokens` are the
prompt tokens that were sent to the model, `computed` those that were not in a cache (null if a server does
not tell), and `computed_per_token` is by scored token and explanation.
"""

from __future__ import annotations

import argparse
import gzip
import json
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean
from types import SimpleNamespace

import numpy as np
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn
from rich.table import Table

from neuroexplain.config import EngineConfig
from neuroexplain.errors import LlmReplyError, NeuroexplainError
from neuroexplain.evidence import VocabularyEntry
from neuroexplain.explaining.engines import open_engine
from neuroexplain.llm.engine import Usage
from neuroexplain.runtime.in_flight import map_in_flight
from neuroexplain.scorers._simulation import OpenSimulator
from neuroexplain.scorers.base import SCORERS
from neuroexplain.scoring.correlation import correlation_score
from neuroexplain.subject.load import embedded_model

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


def open_simulator(options: argparse.Namespace, stack: ExitStack) -> OpenSimulator:
    local = embedded_model() if options.local is None and options.server is None else options.local
    config = EngineConfig(server=options.server, local=local, model=options.model, api_key=options.api_key)
    scorer = SCORERS.load(options.scorer)
    engine = open_engine(config, stack, lambda line: print(line, file=sys.stderr))
    return scorer.open(engine, SimpleNamespace(tokenizer_sha256=NO_TOKENIZER))


def table_of(outcomes: Sequence[Outcome]) -> Table:
    table = Table("neuron", "kind", "true", "best false", "margin", "", box=None)
    for x in sorted(outcomes, key=lambda x: (x.margin is None, x.margin)):
        figures = (x.true, max(x.false, default=None), x.margin)
        cells = ["-" if value is None else f"{value:.2f}" for value in figures]
        table.add_row(x.name, x.kind, *cells, "; ".join([*(["won"] if x.won else []), *x.reasons]))
    return table


def table_of_kinds(outcomes: Sequence[Outcome]) -> Table:
    table = Table("kind", "wins", "true", "false", "margin", "undefined", box=None)
    for kind, summary in {**summarize_kinds(outcomes), "all": summarize(outcomes)}.items():
        means = (summary["mean_true"], summary["mean_false"], summary["mean_margin"])
        cells = ["-" if value is None else f"{value:.3f}" for value in means]
        table.add_row(kind, f"{summary['wins']} of {summary['n']}", *cells, str(summary["undefined"]))
    return table


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--neurons", type=Path, required=True)
    parser.add_argument("--scorer", "--simulator", dest="scorer", choices=SCORERS.names(), required=True)
    parser.add_argument("--local", help="a model to run in this process (default: the embedded one)")
    parser.add_argument("--server", help="the URL of a vLLM server")
    parser.add_argument("--model", help="which of the server's models")
    parser.add_argument("--api-key", help="of the server")
    parser.add_argument(
        "--records",
        type=int,
        help="use this many top and this many random records of each neuron (default: all)",
    )
    parser.add_argument(
        "--half", choices=("all", *HALVES), default="all", help="which neurons (default: all)"
    )
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    options = parser.parse_args()
    console = Console(stderr=True)
    try:
        neurons = read_neurons(options.neurons, options.records, options.half)
        with ExitStack() as stack:
            scorer = open_simulator(options, stack)
            began, outcomes = time.perf_counter(), []
            columns = (*Progress.get_default_columns()[:3], MofNCompleteColumn(), TimeRemainingColumn())
            with Progress(*columns, console=console) as bar:
                for outcome in bar.track(
                    evaluate(neurons, scorer), total=len(neurons), description="neurons"
                ):
                    outcomes.append(outcome)
            cost = cost_of(scorer.engine.usage, neurons, time.perf_counter() - began)
            # The version says how a server gave probabilities.
            print(f"{scorer.engine.model}: {scorer.engine.version}", file=sys.stderr)
    except (NeuroexplainError, OSError, json.JSONDecodeError, KeyError) as error:
        print(
            f"{type(error).__name__}: {error}" if not isinstance(error, NeuroexplainError) else error,
            file=sys.stderr,
        )
        return 2
    if options.json:
        print(json.dumps({**summarize(outcomes), **cost, "kinds": summarize_kinds(outcomes)}))
        return 0
    costs = ", ".join(f"{name} {value}" for name, value in cost.items())
    Console().print(table_of(outcomes), "", table_of_kinds(outcomes), "", costs, sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
