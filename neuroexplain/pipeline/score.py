"""Score: stored explanations -> simulations of held-out records -> scores; the null; and the check that scores follow."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from neuroexplain.errors import NotInStore, StoreUnreadable
from neuroexplain.llm.simulator import Simulator
from neuroexplain.pipeline.in_flight import map_in_flight
from neuroexplain.pipeline.progress import Progress
from neuroexplain.pipeline.session import Saving
from neuroexplain.pipeline.simulate import (
    HELD_OUT,
    Simulating,
    begin_simulation,
    cut_crops,
    score_simulation,
    units_at_once,
)
from neuroexplain.scoring.splits import find_leaks, split_by_rank
from neuroexplain.stable_hash import stable_hash
from neuroexplain.store.engine import Store
from neuroexplain.store.read import (
    list_explained_ids,
    list_explanations,
    list_misplaced,
    list_scores,
    list_simulations,
    load_tokens,
    load_unit,
)
from neuroexplain.store.write import as_stored, save_prompt
from neuroexplain.types import (
    CROP_LENGTH,
    RECORD_LENGTH,
    Explained,
    Explanation,
    Run,
    Score,
    ScoreKind,
    Simulation,
    Split,
    Status,
    Tokens,
    Unit,
    UnitId,
)


@dataclass(frozen=True)
class SimulateTask:
    """What one explanation's simulation, or its comparison with another's, needs; read from the store beforehand."""

    explanation: Explanation
    other: Explanation | None  # simulated on the same records, as the null
    unit: Unit
    tokens: Tokens
    simulation: Simulation | None  # the stored one


def run_score(
    store: Store,
    run: Run,
    explanations: Sequence[Explanation],
    simulator: Simulator,
    *,
    with_null: bool = False,
    retry_failed: bool = False,
) -> Generator[Progress]:
    """Simulate and score stored explanations on held-out records, then compare with other neurons' explanations.

    A simulator that asks per record reads `report` alone; else `select` too, for calibration.
    """
    if simulator.prompt is not None:
        save_prompt(store, simulator.prompt.name, simulator.prompt.text)
    finished = find_simulations(store, explanations, simulator, retry_failed=retry_failed)
    splits: tuple[Split, ...] = ("report",) if simulator.asks_per_record else HELD_OUT
    pending = [e for e in explanations if not _is_scored(finished.get(e.id or 0))]
    n_units, n_crops = units_at_once(simulator, 1, len(pending))

    def work(task: SimulateTask) -> Explained:
        e, before = task.explanation, task.simulation or begin_simulation(task.explanation, simulator)
        simulating = Simulating(simulator, cut_crops(task.unit, run.seed), task.tokens, n_crops)
        made = as_stored(simulating.extend(before, e.hypotheses, splits))
        return Explained(e, made, tuple(score_simulation(task.unit, made)), replaces=task.simulation)

    before = len(explanations) - len(pending)
    failed = sum(s.status.failed for s in finished.values())
    with Saving(store, run, None, None, simulator) as saving:
        yield Progress("scoring", before, len(explanations), "explanations", failed)
        tasks = (plan_simulation(store, run, e, None, finished.get(e.id or 0)) for e in pending)
        for _, made in map_in_flight(work, tasks, n_units):
            saving.add([made])
            yield Progress(
                "scoring",
                before + saving.n_units,
                len(explanations),
                "explanations",
                failed + saving.n_failed,
                tokens=saving.prompt_tokens,
            )
        saving.flush()
        yield from compare_with_others(
            store, run, explanations, simulator, saving, with_null=with_null, retry_failed=retry_failed
        )


def compare_with_others(
    store: Store,
    run: Run,
    explanations: Sequence[Explanation],
    simulator: Simulator,
    saving: Saving,
    *,
    with_null: bool,
    retry_failed: bool,
) -> Generator[Progress]:
    """The null: each explanation's records scored with the explanation of another neuron.

    It is that of the next neuron, in the order of a stable hash, among these explanations; of the same layer if there is one.
    Where every record costs a request it is left out unless `with_null`. A person's own hypothesis is compared with none: on
    every neuron it is the same.
    """
    if simulator.asks_per_record and not with_null:
        return
    others = find_others([e for e in explanations if e.explainer != "human"])
    simulations = find_simulations(store, explanations, simulator, retry_failed=False)
    pending = [
        e
        for e in explanations
        if e.id in others
        and (s := simulations.get(e.id or 0)) is not None
        and s.status == Status.OK
        and s.other_explanation_id is None
        and (s.reason is None or retry_failed)
    ]
    n_units, n_crops = units_at_once(simulator, 1, len(pending))

    def work(task: SimulateTask) -> Explained:
        assert task.other is not None
        assert task.simulation is not None
        simulating = Simulating(simulator, cut_crops(task.unit, run.seed), task.tokens, n_crops)
        made = as_stored(simulating.compare(task.simulation, task.other))
        return Explained(task.explanation, made, tuple(score_simulation(task.unit, made)), replaces=task.simulation)

    failed = 0
    done = len(explanations) - len(pending)
    yield Progress("comparing", done, len(explanations), "explanations")
    tasks = (plan_simulation(store, run, e, others[e.id or 0], simulations.get(e.id or 0)) for e in pending)
    for _, made in map_in_flight(work, tasks, n_units):
        saving.add([made], counts=False)
        failed += made.simulation is not None and made.simulation.other_explanation_id is None
        done += 1
        yield Progress("comparing", done, len(explanations), "explanations", failed, tokens=saving.prompt_tokens)


def find_simulations(
    store: Store, explanations: Sequence[Explanation], simulator: Simulator | None, *, retry_failed: bool
) -> dict[int, Simulation]:
    """The stored simulations by this simulator, model and prompt, by explanation; failed ones unless they are asked again."""
    if simulator is None:
        return {}
    prompt = simulator.prompt.sha256 if simulator.prompt is not None else None
    mine = (simulator.name, simulator.engine.model, prompt)
    return {
        s.explanation_id: s
        for s in list_simulations(store, [e.id for e in explanations if e.id is not None])
        if (s.simulator, s.provenance.model, s.provenance.prompt_sha256) == mine
        and not (retry_failed and s.status.is_worth_retrying)
    }


def plan_simulation(
    store: Store, run: Run, explanation: Explanation, other: Explanation | None, simulation: Simulation | None
) -> SimulateTask:
    """Read what is needed of the neuron."""
    neuron = load_unit(store, run, explanation.unit)
    tokens = load_tokens(store, run.id, {int(i) for x in neuron.exemplars for i in x.token_ids})
    return SimulateTask(explanation, other, neuron, tokens, simulation)


def find_others(explanations: Sequence[Explanation]) -> dict[int, Explanation]:
    """For each explanation, by id, that of another neuron which is its null; those without one are left out.

    It is the next neuron's by the same explainer and model, in the order of a stable hash, around the end to the first; of the
    same layer if there is one. A neuron with several is represented by its chosen one.
    """
    alike: dict[tuple[str, str], dict[UnitId, Explanation]] = {}
    for e in sorted(explanations, key=lambda e: (not e.chosen, e.id or 0)):
        alike.setdefault((e.explainer, e.provenance.model), {}).setdefault(e.unit, e)
    following = {}
    for by, of_neuron in alike.items():
        ring = sorted(of_neuron.values(), key=lambda e: (stable_hash(e.unit.layer, e.unit.index), e.unit))
        layers = {e.unit.layer for e in ring}
        following[by] = _following(ring)
        for layer in layers:
            following[by] |= _following([e for e in ring if e.unit.layer == layer])
    found = ((e.id, following[e.explainer, e.provenance.model].get(e.unit)) for e in explanations)
    return {own: other for own, other in found if own is not None and other is not None}


def _following(ring: Sequence[Explanation]) -> dict[UnitId, Explanation]:
    return {e.unit: after for e, after in zip(ring, (*ring[1:], *ring[:1]), strict=True) if after is not e}


def _is_scored(simulation: Simulation | None) -> bool:
    """Whether nothing is left to simulate: it failed, or it has more than the `select` records of a candidate."""
    return simulation is not None and (
        simulation.status != Status.OK or any(split_by_rank(r.rank) == "report" for r in simulation.records)
    )


def verify_run(store: Store, run: Run) -> Iterator[str]:
    """Recompute every score from what is stored; look for leaks and for rows that cannot be read or are in the wrong place.

    Yields a line for each fault, and goes on with the next neuron where one cannot be read.
    """
    for unit_id in list_explained_ids(store, run.id):
        try:
            yield from _verify_unit(store, run, unit_id)
        except (NotInStore, StoreUnreadable) as error:
            yield f"{unit_id}: {str(error).splitlines()[0]}"
    yield from list_misplaced(store, run.id)


def _verify_unit(store: Store, run: Run, unit_id: UnitId) -> Iterator[str]:
    neuron = load_unit(store, run, unit_id)
    ids = [e.id for e in list_explanations(store, run.id, unit_id, status=Status.OK) if e.id is not None]
    stored: dict[tuple[int, str, str], dict[tuple[Split, ScoreKind], Score]] = {}
    for s in list_scores(store, ids):
        stored.setdefault((s.explanation_id, s.simulator, s.simulator_model), {})[s.score.split, s.score.kind] = s.score
    for simulation in list_simulations(store, ids):
        what = f"{unit_id}, explanation {simulation.explanation_id} by {simulation.simulator}"
        found = stored.pop((simulation.explanation_id, simulation.simulator, simulation.provenance.model), {})
        wrong = _find_unscorable(neuron, simulation)
        if wrong is not None:
            yield f"{what}: the simulation cannot be read: {wrong}"
            continue
        recomputed = {(score.split, score.kind): score for score in score_simulation(neuron, simulation)}
        for key in dict.fromkeys((*recomputed, *found)):
            if found.get(key) != recomputed.get(key):
                yield f"{what}: the stored score {found.get(key)} differs from the recomputed {recomputed.get(key)}"
        for leak in find_leaks(neuron.exemplars, {(r.kind, r.rank) for r in simulation.records}):
            yield f"{what}: a leak: {leak}"
    for (explanation_id, simulator, model), scores in stored.items():
        what = f"{unit_id}, explanation {explanation_id} by {simulator}"
        yield f"{what}: {len(scores)} scores of {model} without their simulation"


def _find_unscorable(neuron: Unit, simulation: Simulation) -> str | None:
    """Why a simulation does not fit its neuron's exemplars, so that no score can be computed; None where it does."""
    true = {(x.kind, x.rank): x.activations for x in neuron.exemplars}
    for r in simulation.records:
        which, recorded = f"its record {r.kind} {r.rank}", true.get((r.kind, r.rank))
        if recorded is None:
            return f"{which} is not among the neuron's exemplars"
        if r.first > RECORD_LENGTH - CROP_LENGTH:
            return f"{which} begins at token {r.first}, too late"
        if simulation.other_explanation_id is not None and r.other_levels is None:
            return f"{which} lacks the levels of the other explanation"
        levels = (r.expected_levels, r.other_levels, recorded)
        if any(values is not None and np.isinf(values).any() for values in levels) or np.isnan(recorded).any():
            return f"{which} holds values that are not finite"
    return None
