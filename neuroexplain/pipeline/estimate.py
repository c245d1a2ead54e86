"""What a run of explain will cost, from prompts really built and one request of each sort really made; nothing is stored."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from neuroexplain.config import ExplainConfig
from neuroexplain.errors import LlmReplyError, NeuroexplainError
from neuroexplain.llm.engine import Engine, chat_token_ids
from neuroexplain.llm.explainer import MOST_MEANINGS
from neuroexplain.llm.simulator import Simulator
from neuroexplain.pipeline.explain import find_answers, is_finished, plan_unit
from neuroexplain.pipeline.hypothesize import Asking, ExplainTask, ask, shown_records
from neuroexplain.pipeline.score import find_simulations
from neuroexplain.pipeline.simulate import cut_crops
from neuroexplain.scoring.splits import split_by_rank
from neuroexplain.store.engine import Store
from neuroexplain.types import Exemplar, Run, Split, Status

SAMPLED = 16  # neurons whose prompts are built
STAND_IN = "words and phrases that have to do with travelling by sea"  # for an explanation that is not written yet


@dataclass(frozen=True)
class Estimate:
    """What is still to be done. Numbers for all neurons are those of a sample, scaled up."""

    n_units: int  # to be explained
    n_finished: int
    n_requests: int
    n_prompt_tokens: int
    seconds: float  # one request after the other
    in_flight: int  # requests that may run at once: so much faster at best


def estimate_explain(
    store: Store,
    run: Run,
    config: ExplainConfig,
    engine: Engine | None,
    simulator: Simulator | None,
    *,
    with_null: bool = False,
) -> Estimate:
    """Build the prompts of some neurons, spread over the selection, and time one request of each sort.

    Prompt tokens are counted as they are sent. Not counted: nulls that finished neurons still lack.
    """
    asking = Asking.of(config, engine)
    answers = find_answers(store, run, asking, config)
    stored = [e for of_neuron in answers.values() for e in of_neuron.values()]
    simulations = find_simulations(store, stored, simulator, retry_failed=config.retry_failed)
    pending = [n for n in config.neurons if not is_finished(asking, answers[n], simulations, simulator)]
    n_finished = len(config.neurons) - len(pending)
    if not pending:
        return Estimate(0, n_finished, 0, 0, 0.0, 1)
    sample = pending[:: -(-len(pending) // SAMPLED)]
    requests = tokens = 0
    seconds = 0.0
    each: dict[str, float] = {}  # seconds of one request of each sort
    as_sent = 1.0  # tokens sent for one of a simulation's prompts: a server that takes cut prompts is sent each many times
    for unit_id in sample:
        task = plan_unit(store, run, unit_id, answers[unit_id], simulations)
        shown = shown_records(task.unit, asking.explainer)
        if task.unit.status == Status.DEAD or not shown:
            continue
        if asking.prompt is not None and asking.engine is not None and (n := _n_to_ask(asking, task)):
            requests += n
            tokens += n * _explaining_tokens(asking, task, shown)
            if "explain" not in each:
                began = time.perf_counter()
                ask(task, asking, asking.request(unit_id, 0), shown)
                each["explain"] = time.perf_counter() - began
            seconds += n * each["explain"]
        if simulator is not None and (asked := _asked(asking, simulator, task, run.seed, with_null=with_null)):
            if "simulate" not in each:
                trial = simulator.plan(STAND_IN, asked[0][0], task.tokens)
                began, before = time.perf_counter(), simulator.engine.used.prompt_tokens
                _try_simulation(simulator, asked[0][0], task, max(trial, default=0))
                each["simulate"] = (time.perf_counter() - began) / max(1, len(trial))
                as_sent = (simulator.engine.used.prompt_tokens - before) / sum(trial) if trial else 1.0
            plans = [simulator.plan(STAND_IN, records, task.tokens, n) for records, n in asked]
            n = sum(map(len, plans))
            requests += n
            tokens += round(as_sent * sum(map(sum, plans)))
            seconds += (n or 1) * each["simulate"]
    scale = len(pending) / len(sample)
    in_flight = max(engine.in_flight if engine else 1, simulator.engine.in_flight if simulator else 1)
    return Estimate(len(pending), n_finished, round(requests * scale), round(tokens * scale), seconds * scale, in_flight)


def _try_simulation(simulator: Simulator, records: Sequence[tuple[int, ...]], task: ExplainTask, n_tokens: int) -> None:
    try:
        simulator.simulate(STAND_IN, records, task.tokens)
    except LlmReplyError as error:
        raise NeuroexplainError(
            f"A prompt to simulate with, {n_tokens:,} tokens long, got no usable answer ({error.status}): {error.reason}"
        ) from error


def _explaining_tokens(asking: Asking, task: ExplainTask, shown: Sequence[Exemplar]) -> int:
    assert asking.prompt is not None
    assert asking.engine is not None
    return len(chat_token_ids(asking.engine.tokenizer, asking.explainer.messages(asking.prompt, shown, task.tokens)))


def _n_to_ask(asking: Asking, task: ExplainTask) -> int:
    """How many requests for explanations the neuron still lacks."""
    if asking.says_several:
        return not task.found
    return sum(number not in task.found for number in range(asking.candidates + asking.revise))


def _asked(
    asking: Asking, simulator: Simulator, task: ExplainTask, seed: int, *, with_null: bool
) -> list[tuple[list[tuple[int, ...]], int]]:
    """Each split's records, and for how many hypotheses they are still simulated.

    `report` for the chosen explanation, unless one was chosen before, `select` for each that may be chosen, both for another
    neuron's as the null. A union is simulated by its parts.
    """
    crops = cut_crops(task.unit, seed)
    each = MOST_MEANINGS if asking.says_several else 1
    several = each if asking.says_several else asking.candidates + asking.revise
    done = sum(e.status != Status.OK or e.id in task.simulated for e in task.found.values() if not e.parts)
    reported = any(split_by_rank(r.rank) == "report" for s in task.simulated.values() for r in s.records)
    null = each * with_null
    times: dict[Split, int] = {"report": each * (not reported) + null}
    if asking.chooses:
        times["select"] = max(0, several - done) + null
    if not simulator.asks_per_record:
        times = {"select": 1, "report": 1}
    found = [([crop.token_ids for crop in crops if crop.split == split], n) for split, n in times.items()]
    found = [(records, n) for records, n in found if records and n]
    return found if simulator.asks_per_record else found[:1]
