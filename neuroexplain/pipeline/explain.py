"""Explain: exemplars -> explanations, each stored as soon as it is there; then their scores."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from neuroexplain.config import ExplainConfig
from neuroexplain.errors import LlmReplyError
from neuroexplain.llm.engine import Engine
from neuroexplain.llm.explainer import EXPLAINERS, Explainer, parse_reply
from neuroexplain.llm.prompts import Prompt
from neuroexplain.llm.simulator import Simulator
from neuroexplain.pipeline.in_flight import map_in_flight
from neuroexplain.pipeline.progress import Progress
from neuroexplain.pipeline.score import run_score
from neuroexplain.scoring.splits import assign_splits
from neuroexplain.store.engine import Store
from neuroexplain.store.read import list_explanations, load_neuron, load_tokens
from neuroexplain.store.write import request_key, save_explanation, save_prompt
from neuroexplain.types import Exemplar, Explanation, NeuronId, Provenance, Run, VocabularyEntry

FINISHED = ("ok", "dead")  # statuses that --retry-failed leaves alone


@dataclass(frozen=True)
class ExplainTask:
    """What one explanation needs, read from the store beforehand."""

    asked: Explanation  # the request; a status other than ok is already the answer
    shown: Sequence[Exemplar] = ()  # strongest first
    tokens: Mapping[int, VocabularyEntry] | None = None


def run_explain(
    store: Store, run: Run, config: ExplainConfig, engine: Engine | None, simulator: Simulator | None
) -> Generator[Progress]:
    """Explain the neurons, then score what was written, unless `simulator` is None. Finished work is not done again.

    `engine` is None where the explainer asks no LLM. Every result is stored as soon as it is there.
    """
    explainer = EXPLAINERS[config.explainer]
    prompt = explainer.load_prompt()
    if prompt is not None:
        save_prompt(store, prompt.name, prompt.text)
    asked = {neuron: ask_for(neuron, explainer, engine, prompt, config.seed) for neuron in config.neurons}
    done = find_answers(store, run, asked, retry_failed=config.retry_failed)
    tasks = (plan_explanation(store, run, asked[n], explainer) for n in config.neurons if n not in done)
    work = partial(explain_neuron, explainer=explainer, prompt=prompt, engine=engine)
    yield _progress(done, len(asked))
    for _, made in map_in_flight(work, tasks, engine.in_flight if engine is not None else 1):
        done[made.neuron] = save_explanation(store, run.id, made)
        yield _progress(done, len(asked))
    if simulator is not None:
        written = [done[neuron] for neuron in config.neurons if done[neuron].status == "ok"]
        yield from run_score(store, run, written, simulator, retry_failed=config.retry_failed)


def ask_for(neuron: NeuronId, explainer: Explainer, engine: Engine | None, prompt: Prompt | None, seed: int) -> Explanation:
    """The request as an explanation without text: what is asked, of whom, by which prompt."""
    if prompt is None or engine is None:
        nobody = Provenance("none", None, explainer.name, None, None)
        return Explanation(neuron, explainer.name, "ok", None, nobody)
    sampling = {"temperature": 0.0, "max_tokens": explainer.max_tokens, "seed": seed}
    whom = Provenance(engine.engine, engine.version, engine.model, engine.revision, prompt.sha256, sampling)
    return Explanation(neuron, explainer.name, "ok", None, whom)


def find_answers(
    store: Store, run: Run, asked: Mapping[NeuronId, Explanation], *, retry_failed: bool
) -> dict[NeuronId, Explanation]:
    """The stored answers to these requests, without those that are to be asked again."""
    one = next(iter(asked.values()))
    stored = list_explanations(store, run.id, explainer=one.explainer, model=one.provenance.model)
    return {
        found.neuron: found
        for found in stored
        if found.neuron in asked
        and request_key(found) == request_key(asked[found.neuron])
        and (found.status in FINISHED or not retry_failed)
    }


def plan_explanation(store: Store, run: Run, asked: Explanation, explainer: Explainer) -> ExplainTask:
    """Read what the explainer is shown: the strongest top records of the split `explain`."""
    neuron = load_neuron(store, run, asked.neuron)
    if neuron.status == "dead":
        return ExplainTask(replace(asked, status="dead", reason="its strongest record is not above 0"))
    splits = assign_splits(neuron.exemplars)
    shown = [x for x in neuron.exemplars if x.kind == "top" and splits[x.kind, x.rank] == "explain"][: explainer.n_records]
    if not shown:
        return ExplainTask(replace(asked, status="no_records", reason="there is no top record to show"))
    return ExplainTask(asked, shown, load_tokens(store, run.id, {int(i) for x in shown for i in x.token_ids}))


def explain_neuron(task: ExplainTask, *, explainer: Explainer, prompt: Prompt | None, engine: Engine | None) -> Explanation:
    """Ask for one explanation. A request that fails or a reply that is none becomes a failed attempt with its reason."""
    asked = task.asked
    if asked.status != "ok" or task.tokens is None:
        return asked
    try:
        if prompt is None or engine is None:
            return replace(asked, text=explainer.render(task.shown, task.tokens))
        sampling = asked.provenance.sampling
        reply = engine.generate(explainer.messages(prompt, task.shown, task.tokens), **sampling)
    except LlmReplyError as error:
        return replace(asked, status=error.status, reason=error.reason, reply=error.reply)
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


def _progress(done: Mapping[NeuronId, Explanation], total: int) -> Progress:
    failed = sum(one.status not in FINISHED for one in done.values())
    return Progress("explaining", len(done), total, "neurons", failed)
