"""How well a model simulates: each simulator on neurons of known behaviour, by the same engine."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

from neuroexplain.explaining.known_neurons import (
    NO_TOKENIZER,
    KnownNeuron,
    Outcome,
    cost_of,
    evaluate,
    packaged_neurons,
    read_neurons,
    summarize,
    summarize_kinds,
)
from neuroexplain.llm.engine import Engine
from neuroexplain.runs import SimulatorCheck
from neuroexplain.scorers._simulation import OpenSimulator, Simulator
from neuroexplain.scorers.base import SCORERS
from neuroexplain.store.statements import now

N_RECORDS = 2  # top records of a neuron, and random ones
N_FALSE = 2  # explanations beside the true one


def neurons_to_check(n_of_kind: int | None) -> list[KnownNeuron]:
    """Neurons of each kind, n_of_kind or all of them, with some of their records and explanations."""
    neurons, n_chosen = [], dict[str, int]()
    for neuron in read_neurons(packaged_neurons(), N_RECORDS):
        n_chosen[neuron.kind] = n_chosen.get(neuron.kind, 0) + 1
        if n_of_kind is None or n_chosen[neuron.kind] <= n_of_kind:
            neurons.append(replace(neuron, explanations=neuron.explanations[: 1 + N_FALSE]))
    return neurons


def simulators() -> tuple[str, ...]:
    """The names of all scorers that predict levels."""
    return tuple(name for name in SCORERS.names() if isinstance(SCORERS.load(name), Simulator))


def check_simulators(
    names: Sequence[str], engine: Engine, neurons: Sequence[KnownNeuron]
) -> Iterator[tuple[str, Outcome | SimulatorCheck]]:
    """Yield each outcome with its simulator's name, and after the last of a simulator how well it did."""
    for name in names:
        run: Any = SimpleNamespace(tokenizer_sha256=NO_TOKENIZER)
        simulator = SCORERS.load(name).open(engine, run)
        assert isinstance(simulator, OpenSimulator)
        before, began, outcomes = engine.usage.snapshot(), time.perf_counter(), []
        for outcome in evaluate(neurons, simulator):
            outcomes.append(outcome)
            yield name, outcome
        cost = cost_of(engine.usage.since(before), neurons, time.perf_counter() - began)
        yield name, _check_of(name, engine, outcomes, cost)


def _check_of(
    name: str, engine: Engine, outcomes: Sequence[Outcome], cost: Mapping[str, Any]
) -> SimulatorCheck:
    kinds = {
        kind: {"n": of_kind["n"], "n_won": of_kind["wins"]}
        | {name: of_kind[name] for name in ("mean_true", "mean_margin")}
        for kind, of_kind in summarize_kinds(outcomes).items()
    }
    summary: dict[str, Any] = summarize(outcomes)
    return SimulatorCheck(
        scorer=name,
        scorer_model=engine.model,
        engine_version=engine.version,
        created_at=now(),
        n_neurons=len(outcomes),
        n_explanations=1 + N_FALSE,
        n_records=2 * N_RECORDS,
        n_won=summary["wins"],
        n_undefined=summary["undefined"],
        mean_true=summary["mean_true"],
        mean_false=summary["mean_false"],
        mean_margin=sum(outcome.margin or 0.0 for outcome in outcomes) / len(outcomes),
        computed_per_token=cost["computed_per_token"],
        seconds=cost["seconds"],
        kinds=kinds,
    )


def best_of(checks: Sequence[SimulatorCheck]) -> SimulatorCheck:
    """The simulator to use: that with the largest mean margin."""
    return max(checks, key=lambda check: check.mean_margin)
