"""The demo: the embedded model reads the bundled text; selective neurons are explained and scored."""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import ExitStack
from dataclasses import dataclass
from importlib import resources
from statistics import mean

from neuroexplain.collecting.run import find_finished_run, run_collect
from neuroexplain.config import CollectConfig, EngineConfig, ExplainConfig
from neuroexplain.demo.embedded_model import demo_model
from neuroexplain.evidence import Exemplar, Status
from neuroexplain.explaining.engines import open_engine
from neuroexplain.explaining.run import run_explain
from neuroexplain.llm.engine import Engine
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
from neuroexplain.store.writer_lock import writer_lock
from neuroexplain.subject.load import load_causal_lm, subject_of
from neuroexplain.units import PEAK_INDEX, UnitId

SEGMENTS = 544  # read in two minutes on two cores
N_UNITS = 30
LLM_EXPLAINER, BASELINE = EXPLAINERS = ("category", "tokens")
CANDIDATES_PER_LAYER = 60  # neurons of each layer to choose from: all would take minutes
N_BEST = 4  # explanations shown at the end


def run_demo(
    db: str, engine_config: EngineConfig | None, segments: int, model: str | None = None
) -> Generator[Progress]:
    """Collect, choose neurons, explain by the LLM and by the baseline, score both. Finished parts are kept.

    `model` is read, and predicts; without one it is the demo's own, which is fetched where it is missing. It
    explains too unless `engine_config` names another. Raises NeuroexplainError if it cannot be had, or if
    another process writes to the database.
    """
    began = time.monotonic()
    corpus = str(resources.files("neuroexplain.demo") / "corpus.jsonl.gz")
    if model is None:
        model = yield from demo_model()
    config = CollectConfig(model=model, dataset=(corpus,), segments=segments or SEGMENTS, special_peaks=False)
    with ExitStack() as stack:
        store = stack.enter_context(open_store(db, create=True))
        stack.enter_context(writer_lock(store, "collections", "demo"))
        yield Progress("loading the model", note=f"Loading {model} ...")
        loaded = load_causal_lm(model)  # once, for all that it does
        if find_finished_run(store, config) is None:
            yield from run_collect(store, config, subject_of(model, loaded))
        run = load_run(store)
        stack.enter_context(writer_lock(store, f"run {run.id}", "demo"))
        units = tuple(choose_units(store, run))
        scoring_engine = LocalEngine(model, loaded=loaded)
        scorer = SCORERS.load("lexical").open(scoring_engine, run)
        engine: Engine = scoring_engine
        if engine_config is not None:
            engine = open_engine(engine_config, stack, lambda text: None)
        for explainer in EXPLAINERS:
            explain = ExplainConfig(units, explainer)
            yield from run_explain(store, run, explain, engine if explain.asks_llm else None, scorer)
    yield Progress("done", note=f"Took {time.monotonic() - began:.0f} seconds.")


def choose_units(store: Store, run: Run) -> list[UnitId]:
    """30 neurons worth reading: the most selective of each layer, no two with the same peak token."""
    ranked = {layer: _rank_units(store, run, layer) for layer in run.layers}
    units: list[UnitId] = []
    used_tokens: set[int] = set()
    while len(units) < N_UNITS and any(ranked.values()):
        for candidates in ranked.values():
            while candidates and candidates[0][2] in used_tokens:
                candidates.pop(0)
            if candidates and len(units) < N_UNITS:
                _, unit, token = candidates.pop(0)
                used_tokens.add(token)
                units.append(unit)
    return sorted(units)


def _rank_units(store: Store, run: Run, layer: int) -> list[tuple[float, UnitId, int]]:
    """(minus selectivity, unit, its most frequent peak token) of a layer's candidates, in order."""
    ids = list_unit_ids(store, run.id, [layer], Status.OK)
    candidates = []
    for unit_id in ids[:: max(1, len(ids) // CANDIDATES_PER_LAYER)]:
        unit = load_unit(store, run, unit_id)
        records = [x for x in unit.exemplars if x.kind == "top"]
        token, n_peaks = _favourite_token(records)
        assert unit.stats is not None
        weakest = min(x.activation for x in records)
        sharpness = (weakest - unit.stats.mean) / (unit.stats.std or 1.0)
        selectivity = sharpness * (0.5 + n_peaks / len(records))
        candidates.append((-selectivity, unit_id, token))
    return sorted(candidates)


def _favourite_token(records: list[Exemplar]) -> tuple[int, int]:
    """(the token that most records peak on, how many do); of equals the smaller id."""
    peaks = [int(x.token_ids[PEAK_INDEX]) for x in records]
    counts = ((token, peaks.count(token)) for token in set(peaks))
    return max(counts, key=lambda count: (count[1], -count[0]))


@dataclass(frozen=True)
class Highlights:
    """What the demo shows at its end."""

    best: list[tuple[QueryRow, UnitPage]]  # the LLM's explanations with the highest scores
    controls: list[tuple[str, ControlComparison]]  # by what made the explanations, in words


@dataclass(frozen=True)
class ControlComparison:
    """The headline scores of an explainer's explanations, and those of their controls on the same records."""

    pairs: tuple[tuple[float, float], ...]  # (own score, control's)

    @property
    def n(self) -> int:
        return len(self.pairs)

    @property
    def n_won(self) -> int:
        return sum(own > control for own, control in self.pairs)

    @property
    def mean(self) -> float | None:
        """The mean of the explanations' own scores; None where nothing could be compared."""
        return mean(own for own, _ in self.pairs) if self.pairs else None

    @property
    def mean_control(self) -> float | None:
        """Likewise of the controls."""
        return mean(control for _, control in self.pairs) if self.pairs else None


def find_highlights(store: Store, run: Run) -> Highlights:
    """The best explanations with their units, and how explanations compare with controls."""
    rows = [row for row in query_explanations(store, run, limit=100) if row.explainer == LLM_EXPLAINER]
    best = [(row, load_page(store, run, row.unit)) for row in rows[:N_BEST]]
    names = {LLM_EXPLAINER: f"the LLM ({LLM_EXPLAINER})", BASELINE: f"the baseline ({BASELINE}, no LLM)"}
    return Highlights(best, [(names[name], _compare_controls(store, run, name)) for name in EXPLAINERS])


def _compare_controls(store: Store, run: Run, explainer: str) -> ControlComparison:
    explanations = list_explanations(store, run.id, explainer=explainer, status=Status.OK)
    pairs = [
        (stored.score.value, stored.score.control)
        for stored in list_scores(store, [e.id for e in explanations if e.id is not None])
        if run.headline.is_of(stored.score)
    ]
    return ControlComparison(
        tuple((own, control) for own, control in pairs if own is not None and control is not None)
    )
