"""Explain and score: exemplars -> explanations -> simulations -> scores, each stored as soon as it is there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from neuroexplain.errors import LlmReplyError, NeuroexplainError
from neuroexplain.llm.engine import Engine
from neuroexplain.llm.explainer import EXPLAINERS, parse_reply
from neuroexplain.llm.simulator import Simulator
from neuroexplain.pipeline.progress import Progress
from neuroexplain.scoring.correlation import ScoredRecord, score_records
from neuroexplain.scoring.splits import assign_splits, crop_first
from neuroexplain.stable_hash import stable_hash
from neuroexplain.store.engine import Store
from neuroexplain.store.read import list_explanations, list_scores, list_simulations, load_neuron, load_tokens
from neuroexplain.store.write import request_key, save_explanation, save_prompt, save_scores, save_simulation
from neuroexplain.types import (
    CROP_LENGTH,
    SCORE_KINDS,
    Explanation,
    Neuron,
    NeuronId,
    Provenance,
    Run,
    Score,
    SimulatedRecord,
    Simulation,
    Split,
    StoredScore,
)

SCORED_SPLITS: tuple[Split, ...] = ("select", "report")
FAILED = ("llm_error", "context_too_long")  # what another attempt may mend


def run_explain(
    store: Store,
    run: Run,
    neurons: Sequence[NeuronId],
    explainer_name: str,
    engine: Engine | None,
    simulator: Simulator | None,
    *,
    seed: int = 0,
    retry_failed: bool = False,
) -> Iterator[Progress]:
    """Explain the neurons, then score what was written, unless `simulator` is None. Finished work is not done again."""
    explainer = EXPLAINERS[explainer_name]
    prompt = explainer.load_prompt()
    if prompt is not None:
        save_prompt(store, prompt.name, prompt.text)
        if engine is None:
            raise NeuroexplainError(f"The explainer {explainer_name} asks an LLM; give one:  --local MODEL")
    written: list[Explanation] = []
    failed = 0
    for done, neuron_id in enumerate(neurons, 1):
        neuron = load_neuron(store, run, neuron_id)
        asked = Explanation(
            neuron=neuron_id,
            explainer=explainer_name,
            status="ok",
            text=None,
            provenance=Provenance(
                engine=engine.engine if engine and prompt else "none",
                engine_version=engine.version if engine and prompt else None,
                model=engine.model if engine and prompt else explainer_name,
                model_revision=engine.revision if engine and prompt else None,
                prompt_sha256=prompt.sha256 if prompt else None,
                sampling={"temperature": 0.0, "max_tokens": explainer.max_tokens, "seed": seed} if prompt else {},
            ),
        )
        found = _find_same(store, run, asked)
        if found is None or (found.status not in ("ok", "dead") and retry_failed):
            found = save_explanation(store, run.id, _explain(store, run, neuron, asked, engine, seed))
        if found.status == "ok":
            written.append(found)
        elif found.status != "dead":
            failed += 1
        yield Progress("explaining", done, len(neurons), "neurons", failed)
    if simulator is not None:
        yield from run_score(store, run, written, simulator)


def run_score(store: Store, run: Run, explanations: Sequence[Explanation], simulator: Simulator) -> Iterator[Progress]:
    """Simulate and score explanations on held-out records, each with another neuron's explanation as the null.

    The other is the next neuron, in the order of a stable hash, among these explanations; of the same layer if there is one.
    """
    finished = {
        s.explanation_id
        for s in list_scores(store, [e.id for e in explanations if e.id is not None])
        if (s.simulator, s.simulator_model) == (simulator.name, simulator.engine.model)
        and (s.score.other_explanation_id is not None or (simulator.name == "digits" and s.score.status not in FAILED))
    }
    for done, explanation in enumerate(explanations, 1):
        if explanation.id not in finished:
            neuron = load_neuron(store, run, explanation.neuron)
            other = None if simulator.name == "digits" else find_other(explanation, explanations)
            simulation = simulate(store, run, neuron, explanation, other, simulator)
            stored = save_simulation(store, run.id, simulation)
            save_scores(store, run.id, explanation, simulator.name, simulator.engine.model, score_simulation(neuron, stored))
        yield Progress("scoring", done, len(explanations), "explanations")


def simulate(
    store: Store, run: Run, neuron: Neuron, explanation: Explanation, other: Explanation | None, simulator: Simulator
) -> Simulation:
    """Predict the crops of the scored records from the explanation, and from another neuron's where one is given.

    `digits` costs a request a record, so it reads `report` alone; `lexical` reads `select` too, for calibration. A request
    that fails makes the whole simulation a failed attempt with its status and reason.
    """
    assert explanation.text is not None
    assert explanation.id is not None
    splits = assign_splits(neuron.exemplars)
    wanted = ("report",) if simulator.name == "digits" else SCORED_SPLITS
    engine, prompt = simulator.engine, simulator.prompt
    if prompt is not None:
        save_prompt(store, prompt.name, prompt.text)
    provenance = Provenance(
        engine.engine,
        engine.version,
        engine.model,
        engine.revision,
        prompt.sha256 if prompt is not None else None,
        prompt_tokens=simulator.prompt_tokens(explanation.text),
    )
    made = Simulation(explanation.id, neuron.id, simulator.name, "ok", (), provenance)
    records = []
    try:
        for x in neuron.exemplars:
            if splits[x.kind, x.rank] not in wanted or x.kind == "bottom":
                continue
            first = crop_first(run.seed, neuron.id, x.kind, x.rank)
            ids = x.token_ids[first : first + CROP_LENGTH].tolist()
            vocabulary = load_tokens(store, run.id, ids)
            mine = simulator.simulate(explanation.text, ids, vocabulary)
            others = None if other is None or other.text is None else simulator.simulate(other.text, ids, vocabulary).levels
            records.append(SimulatedRecord(x.kind, x.rank, first, mine.levels, mine.digit_mass, others))
    except LlmReplyError as error:
        return replace(made, status=error.status, reason=error.reason, reply=error.reply)
    return replace(made, records=tuple(records), other_explanation_id=other.id if other is not None else None)


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
    """Recompute every score from what is stored; yields a line for each that differs."""
    explanations = list_explanations(store, run.id, status="ok")
    stored = {
        (s.explanation_id, s.simulator, s.simulator_model, s.score.split, s.score.kind): s.score
        for s in _scores(store, explanations)
    }
    for simulation in list_simulations(store, [e.id for e in explanations if e.id is not None]):
        neuron = load_neuron(store, run, simulation.neuron)
        for score in score_simulation(neuron, simulation):
            key = (simulation.explanation_id, simulation.simulator, simulation.provenance.model, score.split, score.kind)
            if stored.get(key) != score:
                what = f"{simulation.neuron}, explanation {simulation.explanation_id}"
                yield f"{what}: stored {stored.get(key)}, recomputed {score}"


def _scores(store: Store, explanations: Sequence[Explanation]) -> list[StoredScore]:
    return list_scores(store, [e.id for e in explanations if e.id is not None])


def _find_same(store: Store, run: Run, asked: Explanation) -> Explanation | None:
    found = list_explanations(store, run.id, asked.neuron, explainer=asked.explainer, model=asked.provenance.model)
    return next((x for x in found if request_key(x) == request_key(asked)), None)


def _explain(store: Store, run: Run, neuron: Neuron, asked: Explanation, engine: Engine | None, seed: int) -> Explanation:
    explainer = EXPLAINERS[asked.explainer]
    if neuron.status == "dead":
        return replace(asked, status="dead", reason="its strongest record is not above 0")
    splits = assign_splits(neuron.exemplars)
    shown = [x for x in neuron.exemplars if x.kind == "top" and splits[x.kind, x.rank] == "explain"][: explainer.n_records]
    if not shown:
        return replace(asked, status="no_records", reason="there is no top record to show")
    tokens = load_tokens(store, run.id, {int(i) for x in shown for i in x.token_ids})
    prompt = explainer.load_prompt()
    try:
        if prompt is None or engine is None:
            return replace(asked, text=explainer.render(shown, tokens))
        reply = engine.generate(
            explainer.messages(prompt, shown, tokens), max_tokens=explainer.max_tokens, temperature=0.0, seed=seed
        )
        cost = replace(
            asked.provenance,
            prompt_tokens=reply.prompt_tokens,
            completion_tokens=reply.completion_tokens,
            seconds=reply.seconds,
        )
        try:
            return replace(asked, text=parse_reply(reply.text), provenance=cost, reply=reply.text)
        except LlmReplyError as error:
            return replace(asked, status=error.status, reason=error.reason, reply=error.reply, provenance=cost)
    except LlmReplyError as error:
        return replace(asked, status=error.status, reason=error.reason, reply=error.reply)
