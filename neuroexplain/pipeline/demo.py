"""The demo: the embedded model reads the bundled text; some neurons worth reading are explained and scored."""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import ExitStack
from importlib import resources
from typing import Any

import numpy as np

from neuroexplain.cli.render import record_line
from neuroexplain.config import CollectConfig, EngineConfig, ExplainConfig, ExplainerName
from neuroexplain.llm.local import LocalEngine
from neuroexplain.llm.simulator import LexicalSimulator
from neuroexplain.pipeline.collect import find_finished_run, run_collect
from neuroexplain.pipeline.engines import open_engine
from neuroexplain.pipeline.explain import run_explain
from neuroexplain.pipeline.page import load_page
from neuroexplain.pipeline.progress import Progress
from neuroexplain.present import interval, number, printable
from neuroexplain.store.engine import Store, open_store
from neuroexplain.store.read import list_explanations, list_neuron_ids, list_scores, load_neuron, load_run, query_explanations
from neuroexplain.subject.load import embedded_model
from neuroexplain.types import PEAK_INDEX, NeuronId, Run

SEGMENTS = 1_000
N_NEURONS = 30
EXPLAINERS: tuple[ExplainerName, ...] = ("excerpts", "tokens")
SAMPLED_PER_LAYER = 60  # neurons looked at in each layer


def run_demo(db: str, engine_config: EngineConfig | None, segments: int) -> Generator[Progress]:
    """Collect, pick, explain with the LLM and with the baseline, score both. Finished parts are not done again.

    The LLM is the embedded model unless `engine_config` names another.
    """
    began = time.monotonic()
    corpus = str(resources.files("neuroexplain.demo") / "corpus.jsonl.gz")
    model = embedded_model()
    config = CollectConfig(model=model, dataset=(corpus,), segments=segments or SEGMENTS, special_peaks=False)
    with open_store(db, create=True) as store:
        if find_finished_run(store, config) is None:
            yield from run_collect(store, config)
        run = load_run(store)
        neurons = pick_neurons(store, run)
        simulator_engine = LocalEngine(model)
        simulator = LexicalSimulator(simulator_engine, run.tokenizer_sha256)
        with ExitStack() as stack:
            engine = simulator_engine if engine_config is None else open_engine(engine_config, stack, lambda text: None)
            for explainer in EXPLAINERS:
                asked = ExplainConfig(tuple(neurons), explainer)
                yield from run_explain(store, run, asked, engine if asked.asks_llm else None, simulator)
    yield Progress("done", note=f"Took {time.monotonic() - began:.0f} seconds.")


def pick_neurons(store: Store, run: Run) -> list[NeuronId]:
    """Some 30 neurons worth reading: sharply selective, spread over layers, no two with the same favourite token.

    Selective: the top records far above the random ones, most tokens near 0, and a peak token that comes back.
    """
    per_layer: dict[int, list[tuple[float, NeuronId, int]]] = {}
    for layer in run.layers:
        ids = list_neuron_ids(store, run.id, [layer], "ok")
        for neuron_id in ids[:: max(1, len(ids) // SAMPLED_PER_LAYER)]:
            neuron = load_neuron(store, run, neuron_id)
            tops = [x for x in neuron.exemplars if x.kind == "top"]
            peaks = [int(x.token_ids[PEAK_INDEX]) for x in tops]
            favourite, times = max(((p, peaks.count(p)) for p in set(peaks)), key=lambda pair: (pair[1], -pair[0]))
            weakest = min(x.activation for x in tops)
            assert neuron.stats is not None
            sharp = (weakest - neuron.stats.mean) / (neuron.stats.std or 1.0)
            per_layer.setdefault(layer, []).append((sharp * (0.5 + times / len(tops)), neuron_id, favourite))
    for found in per_layer.values():
        found.sort(key=lambda one: (-one[0], one[1]))
    picked: list[NeuronId] = []
    used: set[int] = set()
    while len(picked) < N_NEURONS and any(per_layer.values()):
        for found in per_layer.values():
            fresh = next((one for one in found if one[2] not in used), None)
            if fresh is None or len(picked) == N_NEURONS:
                found.clear()
                continue
            found.remove(fresh)
            used.add(fresh[2])
            picked.append(fresh[1])
    return sorted(picked)


def print_demo(db: str) -> Any:
    """What the demo found, for a terminal."""
    from rich.console import Group
    from rich.text import Text

    lines: list[Any] = []
    with open_store(db, read_only=True) as store:
        run = load_run(store)
        lines += [Text(), Text("The best explanations, scored on text that the explainer did not see", style="bold"), Text()]
        rows = [r for r in query_explanations(store, run.id, limit=100) if r.explainer == "excerpts"][:6]
        for row in rows:
            page = load_page(store, run, row.neuron)
            strongest = max(abs(x.activation) for x in page.neuron.exemplars)
            score = f"{number(row.correlation)} ({interval(row.ci_low, row.ci_high)})"
            lines.append(Text.assemble((f"{row.neuron}", "bold"), f"  {score}  ", (printable(row.explanation), "bold cyan")))
            lines += [record_line(page, x, strongest) for x in page.neuron.exemplars[:3]]
            lines.append(Text())
        lines.append(Text("How often a neuron's own explanation scores above another neuron's", style="bold"))
        for explainer in ("excerpts", "tokens"):
            lines.append(Text("  " + _own_above_other(store, run, explainer)))
    lines += [
        Text(),
        Text("These words are a 135M model's: take them as a demonstration. For a better explainer:", style="bold"),
        Text(f"  neuroexplain explain --db {db} --neurons 3:0-99 --local MODEL      (a hub name, a folder or a .gguf file)"),
        Text("Look around:", style="bold"),
        Text(f"  neuroexplain query --db {db}"),
        Text(f"  neuroexplain show {rows[0].neuron if rows else '0:0'} --db {db}"),
    ]
    return Group(*lines)


def _own_above_other(store: Store, run: Run, explainer: str) -> str:
    explanations = list_explanations(store, run.id, explainer=explainer, status="ok")
    scores = [
        s.score
        for s in list_scores(store, [e.id for e in explanations if e.id is not None])
        if s.score.split == "report" and s.score.kind == "top_and_random"
    ]
    compared = [s for s in scores if s.correlation is not None and s.other_correlation is not None]
    won = sum((s.correlation or 0) > (s.other_correlation or 0) for s in compared)
    mean = float(np.mean([s.correlation for s in compared])) if compared else float("nan")
    other = float(np.mean([s.other_correlation for s in compared])) if compared else float("nan")
    name = "the LLM (excerpts)" if explainer == "excerpts" else "the baseline (tokens, no LLM)"
    return f"{name}: {won} of {len(compared)}; mean score {mean:.2f}, with another's explanation {other:.2f}"
