"""Explain: exemplars -> explanations, simulations and scores, each neuron stored as soon as it is complete."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import replace
from functools import partial

from neuroexplain.config import ExplainConfig
from neuroexplain.llm.engine import Engine
from neuroexplain.llm.simulator import Simulator
from neuroexplain.pipeline.hypothesize import Asking, ExplainTask, explain_unit
from neuroexplain.pipeline.in_flight import map_in_flight
from neuroexplain.pipeline.progress import Progress
from neuroexplain.pipeline.score import compare_with_others, find_simulations
from neuroexplain.pipeline.session import Saving
from neuroexplain.pipeline.simulate import units_at_once
from neuroexplain.store.engine import Store
from neuroexplain.store.read import list_explanations, load_tokens, load_unit
from neuroexplain.store.write import request_key, save_prompt
from neuroexplain.types import Explanation, Run, Simulation, Status, UnitId


def run_explain(
    store: Store,
    run: Run,
    config: ExplainConfig,
    engine: Engine | None,
    simulator: Simulator | None,
    *,
    with_null: bool = False,
) -> Generator[Progress]:
    """Explain the neurons and score what is written, unless `simulator` is None. Finished neurons are not done again.

    `engine` is None where the explainer asks no LLM. Many neurons are in work at once, each asked, simulated and chosen from
    start to end; those that are complete are stored together every second. When all are, another neuron's explanation is
    simulated on each one's records, as the null: always where that costs no request a record, else `with_null`.
    """
    asking = Asking.of(config, engine)
    for prompt in (asking.prompt, asking.revising, simulator.prompt if simulator is not None else None):
        if prompt is not None:
            save_prompt(store, prompt.name, prompt.text)
    answers = find_answers(store, run, asking, config)
    found = [e for of_neuron in answers.values() for e in of_neuron.values()]
    simulations = find_simulations(store, found, simulator, retry_failed=config.retry_failed)
    pending = [n for n in config.neurons if not is_finished(asking, answers[n], simulations, simulator)]
    n_units, n_crops = units_at_once(simulator, engine.in_flight if engine is not None else 1, len(pending))
    work = partial(explain_unit, asking=asking, simulator=simulator, seed=run.seed, headline=run.headline, at_once=n_crops)
    tasks = (plan_unit(store, run, n, answers[n], simulations) for n in pending)
    before = len(config.neurons) - len(pending)
    failed = sum(e.status.failed for e in found) + sum(s.status.failed for s in simulations.values())
    with Saving(store, run, asking.explainer.name, engine, simulator) as saving:
        last = Progress("explaining", before, len(config.neurons), "neurons", failed)
        yield last
        for _, made in map_in_flight(work, tasks, n_units):
            saving.add(made)
            done = before + saving.n_units
            last = Progress(
                "explaining", done, len(config.neurons), "neurons", failed + saving.n_failed, tokens=saving.prompt_tokens
            )
            yield last
        saving.flush()
        if simulator is not None:
            wanted = set(config.neurons)
            stored = find_answers(store, run, asking, config)
            chosen = [e for n, of in stored.items() if n in wanted for e in of.values() if e.chosen and e.status == Status.OK]
            for last in compare_with_others(
                store, run, chosen, simulator, saving, with_null=with_null, retry_failed=config.retry_failed
            ):
                yield last
    yield replace(last, note=saving.summary())


def find_answers(store: Store, run: Run, asking: Asking, config: ExplainConfig) -> dict[UnitId, dict[int, Explanation]]:
    """The stored answers to what this command asks, by neuron and candidate, without those that are to be asked again."""
    answers: dict[UnitId, dict[int, Explanation]] = {neuron: {} for neuron in config.neurons}
    keys: dict[str, int] = {request_key(one): one.candidate for one in asking.possible(config.neurons[0])}
    model = asking.request(config.neurons[0], 0).provenance.model
    for found in list_explanations(store, run.id, explainer=asking.explainer.name, model=model):
        if found.unit in answers and not (config.retry_failed and found.status.is_worth_retrying):
            candidate = keys.get(request_key(found))
            if candidate is not None:
                answers[found.unit][candidate] = found
    return answers


def is_finished(
    asking: Asking,
    found: Mapping[int, Explanation],
    simulations: Mapping[int, Simulation],
    simulator: Simulator | None,
) -> bool:
    """Whether the store holds all that the command would find out about a neuron, but for the null."""
    if 0 not in found:
        return False
    usable = [e for e in found.values() if e.status == Status.OK]
    wanted = set(range(asking.candidates)) | set(range(asking.candidates, asking.candidates + asking.revise))
    if found[0].status.has_nothing_to_ask:
        return True
    if usable and not any(e.chosen for e in usable):
        return False  # another command chose since
    if not asking.says_several and not wanted <= set(found):
        return not usable and set(range(asking.candidates)) <= set(found)  # nothing that could be revised
    return simulator is None or all((e.id or 0) in simulations for e in usable)


def plan_unit(
    store: Store,
    run: Run,
    unit_id: UnitId,
    found: Mapping[int, Explanation],
    simulations: Mapping[int, Simulation],
) -> ExplainTask:
    """Read what a neuron's explanations need from the store."""
    neuron = load_unit(store, run, unit_id)
    tokens = load_tokens(store, run.id, {int(i) for x in neuron.exemplars for i in x.token_ids})
    mine = {e.id: simulations[e.id] for e in found.values() if e.id is not None and e.id in simulations}
    return ExplainTask(neuron, tokens, found, mine)
