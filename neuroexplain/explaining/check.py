"""How well a model simulates: each simulator on neurons of known behaviour, by the same engine."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
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
from neuroexplain.llm.engine import Engine, Usage
from neuroexplain.scorers._simulation import OpenSimulator, Simulator
from neuroexplain.scorers.base import SCORERS

N_RECORDS = 2  # top records of a neuron, and random ones
N_FALSE = 2  # explanations beside the true one


@dataclass(frozen=True)
class SimulatorCheck:
    """What a simulator earned on the known neurons, and what it cost."""

    scorer: str
    outcomes: tuple[Outcome, ...]
    cost: dict[str, float | int | None]

    @property
    def summary(self) -> dict[str, float | int | None]:
        return summarize(self.outcomes)

    @property
    def kinds(self) -> dict[str, dict[str, float | int | None]]:
        return summarize_kinds(self.outcomes)


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
    """Yield each outcome with its simulator's name, and after the last of a simulator what it earned."""
    for name in names:
        run: Any = SimpleNamespace(tokenizer_sha256=NO_TOKENIZER)
        simulator = SCORERS.load(name).open(engine, run)
        assert isinstance(simulator, OpenSimulator)
        before, began, outcomes = engine.usage.snapshot(), time.perf_counter(), []
        for outcome in evaluate(neurons, simulator):
            outcomes.append(outcome)
            yield name, outcome
        usage = _difference(engine.usage.snapshot(), before)
        cost = cost_of(usage, neurons, time.perf_counter() - began)
        yield name, SimulatorCheck(name, tuple(outcomes), cost)


def best_of(checks: Sequence[SimulatorCheck]) -> SimulatorCheck:
    """The simulator to use: the largest mean margin, where a neuron without one counts as 0."""

    def margin(check: SimulatorCheck) -> float:
        return sum(outcome.margin or 0.0 for outcome in check.outcomes)

    return max(checks, key=margin)


def _difference(usage: Usage, before: Usage) -> Usage:
    """What was used since."""
    since = Usage()
    since.requests = usage.requests - before.requests
    since.prompt_tokens = usage.prompt_tokens - before.prompt_tokens
    since.completion_tokens = usage.completion_tokens - before.completion_tokens
    is_known = usage.cached_tokens is not None and before.cached_tokens is not None
    since.cached_tokens = usage.cached_tokens - before.cached_tokens if is_known else None  # type: ignore[operator]
    return since
