"""What a run of explain will cost, from prompts really built and one request of each sort really made; nothing is stored."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

from neuroexplain.config import ExplainConfig
from neuroexplain.llm.engine import Engine, chat_token_ids
from neuroexplain.llm.explainer import EXPLAINERS
from neuroexplain.llm.simulator import DigitsSimulator, Simulator
from neuroexplain.pipeline.explain import ask_for, explain_neuron, find_answers, plan_explanation
from neuroexplain.pipeline.score import plan_simulation
from neuroexplain.store.engine import Store
from neuroexplain.types import Run

SAMPLED = 16  # neurons whose prompts are built
STAND_IN = "words and phrases that have to do with travelling by sea"  # for an explanation that is not written yet


@dataclass(frozen=True)
class Estimate:
    """What is still to be done. Numbers for all neurons are those of a sample, scaled up."""

    n_neurons: int  # to be explained
    n_finished: int
    n_requests: int
    n_prompt_tokens: int
    seconds: float  # one request after the other
    in_flight: int  # requests that may run at once: so much faster at best


def estimate_explain(
    store: Store, run: Run, config: ExplainConfig, engine: Engine | None, simulator: Simulator | None
) -> Estimate:
    """Build the prompts of some neurons, spread over the selection, and time one request of each sort."""
    explainer = EXPLAINERS[config.explainer]
    prompt = explainer.load_prompt()
    asked = {neuron: ask_for(neuron, explainer, engine, prompt, config.seed) for neuron in config.neurons}
    finished = find_answers(store, run, asked, retry_failed=config.retry_failed)
    pending = [neuron for neuron in config.neurons if neuron not in finished]
    if not pending:
        return Estimate(0, len(finished), 0, 0, 0.0, 1)
    sample = pending[:: -(-len(pending) // SAMPLED)]
    requests = tokens = 0
    seconds = 0.0
    timed: set[str] = set()
    one: dict[str, float] = {}
    for neuron in sample:
        task = plan_explanation(store, run, asked[neuron], explainer)
        if task.tokens is None:
            continue
        if prompt is not None and engine is not None:
            requests += 1
            tokens += len(chat_token_ids(engine.tokenizer, explainer.messages(prompt, task.shown, task.tokens)))
            if "explain" not in timed:
                timed.add("explain")
                began = time.perf_counter()
                explain_neuron(task, explainer=explainer, prompt=prompt, engine=engine)
                one["explain"] = time.perf_counter() - began
            seconds += one["explain"]
        if simulator is not None:
            simulated = plan_simulation(store, run, replace(asked[neuron], text=STAND_IN, id=0), None, simulator)
            for *_, ids in simulated.crops:
                if isinstance(simulator, DigitsSimulator):
                    requests += 1
                    tokens += len(simulator.build_prompt(STAND_IN, ids, simulated.tokens)[0])
                if "simulate" not in timed:
                    timed.add("simulate")
                    began = time.perf_counter()
                    simulator.simulate(STAND_IN, ids, simulated.tokens)
                    one["simulate"] = time.perf_counter() - began
                seconds += one["simulate"] if isinstance(simulator, DigitsSimulator) else one["simulate"] / len(simulated.crops)
    scale = len(pending) / len(sample)
    in_flight = max(engine.in_flight if engine else 1, simulator.engine.in_flight if simulator else 1)
    return Estimate(len(pending), len(finished), round(requests * scale), round(tokens * scale), seconds * scale, in_flight)
