"""The demo: the embedded model reads the bundled text; some neurons worth reading are explained and scored."""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import ExitStack
from dataclasses import dataclass
from importlib import resources

import numpy as np

from neuroexplain.collecting.run import find_finished_run, run_collect
from neuroexplain.config import CollectConfig, EngineConfig, ExplainConfig, ExplainerName
from neuroexplain.evidence import Status
from neuroexplain.explaining.engines import open_engine
from neuroexplain.explaining.run import run_explain
from neuroexplain.llm.local import LocalEngine
from neuroexplain.lookup import load_page
from neuroexplain.runs import QueryRow, Run, UnitPage
from neuroexplain.runtime.progress import Progress
from neuroexplain.scorers.base import SCORERS
from neuroexplain.store.engine import Store, open_store
from neuroexplain.store.explanations import list_explanations, list_scores
from neuroexplain.store.runs import load_run
from neuroexplain.store.search import query_explanations
from neuroexplain.store.units import list_unit_ids, load_unit
from neuroexplain.subject.load import embedded_model
from neuroexplain.units import PEAK_INDEX, UnitId

SEGMENTS = 800
N_UNITS = 30
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
        neurons = pick_units(store, run)
        simulator_engine = LocalEngine(model)
        scorer = SCORERS.load("lexical").open(simulator_engine, run)
        with ExitStack() as stack:
            engine = (
                simulator_engine
                if engine_config is None
                else open_engine(engine_config, stack, lambda text: None)
            )
            for explainer in EXPLAINERS:
                asked = ExplainConfig(tuple(neurons), explainer)
                yield from run_explain(store, run, asked, engine if asked.asks_llm else None, scorer)
    yield Progress("done", note=f"Took {time.monotonic() - began:.0f} seconds.")


def pick_units(store: Store, run: Run) -> list[UnitId]:
    """Some 30 neurons worth reading: sharply selective, spread over layers, no two with the same favourite token.

    Selective: the top records far above the random ones, most tokens near 0, and a peak token that comes back.
    """
    per_layer: dict[int, list[tuple[float, UnitId, int]]] = {}
    for layer in run.layers:
        ids = list_unit_ids(store, run.id, [layer], Status.OK)
        for unit_id in ids[:: max(1, len(ids) // SAMPLED_PER_LAYER)]:
            neuron = load_unit(store, run, unit_id)
            tops = [x for x in neuron.exemplars if x.kind == "top"]
            peaks = [int(x.token_ids[PEAK_INDEX]) for x in tops]
            favourite, times = max(
                ((p, peaks.count(p)) for p in set(peaks)), key=lambda pair: (pair[1], -pair[0])
            )
            weakest = min(x.activation for x in tops)
            assert neuron.stats is not None
            sharp = (weakest - neuron.stats.mean) / (neuron.stats.std or 1.0)
            per_layer.setdefault(layer, []).append((sharp * (0.5 + times / len(tops)), unit_id, favourite))
    for found in per_layer.values():
        found.sort(key=lambda one: (-one[0], one[1]))
    picked: list[UnitId] = []
    used: set[int] = set()
    while len(picked) < N_UNITS and any(per_layer.values()):
        for found in per_layer.values():
            fresh = next((one for one in found if one[2] not in used), None)
            if fresh is None or len(picked) == N_UNITS:
                found.clear()
                continue
            found.remove(fresh)
            used.add(fresh[2])
            picked.append(fresh[1])
    return sorted(picked)


@dataclass(frozen=True)
class Highlights:
    """What the demo found."""

    best: list[tuple[QueryRow, UnitPage]]  # the LLM's explanations with the highest scores
    own_above_other: list[tuple[ExplainerName, OwnAboveOther]]  # by explainer


@dataclass(frozen=True)
class OwnAboveOther:
    """How an explainer's explanations did against another neuron's on the same records, by the headline."""

    n_won: int
    n: int
    mean: float | None  # None where nothing could be compared
    mean_other: float | None


def find_highlights(store: Store, run: Run) -> Highlights:
    """The best explanations with their neurons, and whether own explanations beat others'."""
    rows = [r for r in query_explanations(store, run, limit=100) if r.explainer == "excerpts"][:6]
    best = [(row, load_page(store, run, row.unit)) for row in rows]
    return Highlights(
        best, [(explainer, _own_above_other(store, run, explainer)) for explainer in EXPLAINERS]
    )


def _own_above_other(store: Store, run: Run, explainer: ExplainerName) -> OwnAboveOther:
    explanations = list_explanations(store, run.id, explainer=explainer, status=Status.OK)
    pairs = [
        (s.score.value, s.score.control)
        for s in list_scores(store, [e.id for e in explanations if e.id is not None])
        if run.headline.is_of(s.score)
    ]
    compared = [(own, other) for own, other in pairs if own is not None and other is not None]
    if not compared:
        return OwnAboveOther(0, 0, None, None)
    own, other = np.mean(compared, axis=0).tolist()
    return OwnAboveOther(sum(a > b for a, b in compared), len(compared), own, other)
