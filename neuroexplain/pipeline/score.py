"""Score: explanations -> simulations of held-out records -> scores; and the check that stored scores follow from them."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from neuroexplain.errors import LlmReplyError
from neuroexplain.llm.simulator import Simulator
from neuroexplain.pipeline.in_flight import map_in_flight
from neuroexplain.pipeline.progress import Progress
from neuroexplain.scoring.correlation import ScoredRecord, score_records
from neuroexplain.scoring.splits import assign_splits, crop_first, find_leaks
from neuroexplain.stable_hash import stable_hash
from neuroexplain.store.engine import Store
from neuroexplain.store.read import list_explanations, list_scores, list_simulations, load_neuron, load_tokens
from neuroexplain.store.write import as_stored, save_prompt, save_simulation
from neuroexplain.types import (
    CROP_LENGTH,
    SCORE_KINDS,
    Explanation,
    Kind,
    Neuron,
    NeuronId,
    Provenance,
    Run,
    Score,
    SimulatedRecord,
    Simulation,
    Split,
    VocabularyEntry,
)

SCORED_SPLITS: tuple[Split, ...] = ("select", "report")


@dataclass(frozen=True)
class SimulateTask:
    """What the simulation of one explanation needs, read from the store beforehand."""

    explanation: Explanation
    other: Explanation | None  # simulated on the same records, as the null
    neuron: Neuron
    crops: Sequence[tuple[Kind, int, int, list[int]]]  # kind, rank, first token of the crop, its token ids
    tokens: Mapping[int, VocabularyEntry]


def run_score(
    store: Store, run: Run, explanations: Sequence[Explanation], simulator: Simulator, *, retry_failed: bool = False
) -> Generator[Progress]:
    """Simulate and score explanations on held-out records, each result stored as soon as it is there.

    With `lexical`, another neuron's explanation is simulated on the same records as the null: the next neuron, in the order of
    a stable hash, among these explanations; of the same layer if there is one. With `digits` that would double the requests.
    """
    if simulator.prompt is not None:
        save_prompt(store, simulator.prompt.name, simulator.prompt.text)
    with_null = simulator.name != "digits"
    others = {e.id: find_other(e, explanations) if with_null else None for e in explanations}
    finished = {
        s.explanation_id: s
        for s in list_simulations(store, [e.id for e in explanations if e.id is not None])
        if _is_same(s, simulator)
        and (s.status == "ok" or not retry_failed)
        and (s.other_explanation_id is not None or others[s.explanation_id] is None or s.status != "ok")
    }
    failed = sum(s.status != "ok" for s in finished.values())
    done = len(finished)
    yield Progress("scoring", done, len(explanations), "explanations", failed)
    tasks = (plan_simulation(store, run, e, others[e.id], simulator) for e in explanations if e.id not in finished)
    work = partial(simulate_explanation, simulator=simulator)
    for task, made in map_in_flight(work, tasks, simulator.engine.in_flight):
        simulation = as_stored(made)
        save_simulation(store, run.id, simulation, score_simulation(task.neuron, simulation))
        done += 1
        failed += made.status != "ok"
        yield Progress("scoring", done, len(explanations), "explanations", failed)


def plan_simulation(
    store: Store, run: Run, explanation: Explanation, other: Explanation | None, simulator: Simulator
) -> SimulateTask:
    """Read the crops of the held-out records.

    `digits` costs a request a record, so it reads `report` alone; `lexical` reads `select` too, for calibration.
    """
    neuron = load_neuron(store, run, explanation.neuron)
    splits = assign_splits(neuron.exemplars)
    wanted = ("report",) if simulator.name == "digits" else SCORED_SPLITS
    crops = []
    for x in neuron.exemplars:
        if splits[x.kind, x.rank] in wanted and x.kind != "bottom":
            first = crop_first(run.seed, neuron.id, x.kind, x.rank)
            crops.append((x.kind, x.rank, first, x.token_ids[first : first + CROP_LENGTH].tolist()))
    tokens = load_tokens(store, run.id, {i for *_, ids in crops for i in ids})
    return SimulateTask(explanation, other, neuron, crops, tokens)


def simulate_explanation(task: SimulateTask, *, simulator: Simulator) -> Simulation:
    """Predict every crop from the explanation. A request that fails makes the whole simulation a failed attempt."""
    explanation, other, engine = task.explanation, task.other, simulator.engine
    assert explanation.text is not None
    assert explanation.id is not None
    began = time.perf_counter()
    prompt = simulator.prompt.sha256 if simulator.prompt is not None else None
    whom = Provenance(engine.engine, engine.version, engine.model, engine.revision, prompt)
    made = Simulation(explanation.id, task.neuron.id, simulator.name, "ok", (), whom)
    records, prompt_tokens = [], 0
    try:
        for kind, rank, first, ids in task.crops:
            mine = simulator.simulate(explanation.text, ids, task.tokens)
            prompt_tokens += mine.prompt_tokens
            others = None
            if other is not None and other.text is not None:
                others = simulator.simulate(other.text, ids, task.tokens).levels
            records.append(SimulatedRecord(kind, rank, first, mine.levels, mine.digit_mass, others))
    except LlmReplyError as error:
        return replace(made, status=error.status, reason=error.reason, reply=error.reply)
    return replace(
        made,
        records=tuple(records),
        other_explanation_id=other.id if other is not None else None,
        provenance=replace(whom, prompt_tokens=prompt_tokens, seconds=time.perf_counter() - began),
    )


def score_simulation(neuron: Neuron, simulation: Simulation) -> list[Score]:
    """The scores of a stored simulation on both splits: what `verify` computes again."""
    splits = assign_splits(neuron.exemplars)
    by_place = {(x.kind, x.rank): x for x in neuron.exemplars}
    joined: dict[Split, list[ScoredRecord]] = {split: [] for split in SCORED_SPLITS}
    for r in simulation.records:
        split = splits[r.kind, r.rank]
        if split in joined:
            true = by_place[r.kind, r.rank].activations[r.first : r.first + CROP_LENGTH].astype(np.float64)
            other = None if r.other_levels is None else r.other_levels.astype(np.float64)
            joined[split].append(ScoredRecord(r.kind, r.expected_levels.astype(np.float64), true, other, r.digit_mass))
    if simulation.status != "ok":
        failed = (simulation.status, None, 0, 0, simulation.reason)
        return [Score("report", kind, *failed) for kind in SCORE_KINDS]
    why: str | None = "not asked for" if simulation.simulator == "digits" else "no other explanation in this command"
    why = None if simulation.other_explanation_id is not None else why
    return [
        score
        for split in SCORED_SPLITS
        if split == "report" or joined[split]
        for score in score_records(split, joined[split], joined["select"], simulation.other_explanation_id, why)
    ]


def find_other(explanation: Explanation, among: Sequence[Explanation]) -> Explanation | None:
    """The next neuron's explanation in the order of a stable hash, of the same layer if there is one; None if it is alone."""
    here = [x for x in among if x.neuron != explanation.neuron]
    same_layer = [x for x in here if x.neuron.layer == explanation.neuron.layer]

    def place(x: Explanation) -> tuple[int, NeuronId]:
        return stable_hash(x.neuron.layer, x.neuron.neuron), x.neuron

    candidates = sorted(same_layer or here, key=place)
    return next((x for x in candidates if place(x) > place(explanation)), candidates[0] if candidates else None)


def verify_run(store: Store, run: Run) -> Iterator[str]:
    """Recompute every score from what is stored and look for leaks; yields a line for each fault."""
    explanations = list_explanations(store, run.id, status="ok")
    ids = [e.id for e in explanations if e.id is not None]
    stored = {
        (s.explanation_id, s.simulator, s.simulator_model, s.score.split, s.score.kind): s.score
        for s in list_scores(store, ids)
    }
    for simulation in list_simulations(store, ids):
        what = f"{simulation.neuron}, explanation {simulation.explanation_id} by {simulation.simulator}"
        neuron = load_neuron(store, run, simulation.neuron)
        for score in score_simulation(neuron, simulation):
            key = (simulation.explanation_id, simulation.simulator, simulation.provenance.model, score.split, score.kind)
            found = stored.pop(key, None)
            if found != score:
                yield f"{what}: the stored score {found} differs from the recomputed {score}"
        for leak in find_leaks(neuron.exemplars, {(r.kind, r.rank) for r in simulation.records}):
            yield f"{what}: a leak: {leak}"
    for explanation_id, simulator, model, split, kind in stored:
        yield f"explanation {explanation_id}: a score by {simulator}, {model} on {split}, {kind} without its simulation"


def _is_same(simulation: Simulation, simulator: Simulator) -> bool:
    p = simulation.provenance
    prompt = simulator.prompt.sha256 if simulator.prompt is not None else None
    return (simulation.simulator, p.model, p.prompt_sha256) == (simulator.name, simulator.engine.model, prompt)
