"""Judges that are wrong in one window of ten, on explanations as sets of tokens: what their metrics lose.

Detection says yes to a window that has a token of the explanation, fuzzing to one of whose marked tokens at
least half are of it; both with errors that are drawn by unit and window, the same for every explanation of a
unit. So what a metric loses is the explanation's fault, and its value over the whole corpus is known.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neuroexplain.evidence import PredictedRecord, Prediction, Provenance, Status
from neuroexplain.sampling import scored_first
from neuroexplain.scorers.base import SCORERS, compute_scores, trials_read
from neuroexplain.scoring.judgements import AUROC, BALANCED_ACCURACY, BRIER, JUDGE_METRICS, Judgements
from neuroexplain.scoring.population import POSITIVE_SHARE
from neuroexplain.scoring.side_evidence import SideEvidence, Trial
from neuroexplain.scoring.windows import MarkedWindow
from neuroexplain.stable_hash import stable_hash
from neuroexplain.store.background import load_unit_to_score
from neuroexplain.store.engine import open_store
from neuroexplain.store.runs import load_run
from neuroexplain.units import CROP_LENGTH, RANDOM_START, UnitId
from score_truth.corpus import REPORT, Corpus, true_scores_of
from score_truth.explanations import CHECKS, Table, make_tables
from score_truth.made_units import RuleUnits
from score_truth.summary import Falls, add_falls, sanity

JUDGES = ("detection", "fuzzing")
WRONG = 0.1  # share of windows of which a made judge says the wrong thing
STEEPNESS = 2.0  # of its log odds
GUESSING = {AUROC: 0.5, BALANCED_ACCURACY: 0.5}  # what guessing earns where that is not 0
NO_OPINION = 0.25  # the Brier score of a judge that always says 0.5


@dataclass(frozen=True)
class CorpusWindows:
    """The scored halves of all visited `report` segments."""

    token_ids: NDArray[np.int64]  # [n, 32]
    segments: Sequence[int]  # [n]
    places: NDArray[np.int64]  # [n, 32], of their tokens among the 64 of the segment
    rows: NDArray[np.int64]  # [n], of the segments in the corpus

    @classmethod
    def of(cls, corpus: Corpus, order: NDArray[np.int64], seed: int) -> CorpusWindows:
        """order: the numbers of the corpus' segments."""
        rows = np.flatnonzero(corpus.splits == REPORT)
        segments = order[rows].tolist()
        firsts = np.array([scored_first(seed, segment) for segment in segments])
        places = firsts[:, None] + np.arange(CROP_LENGTH)
        return cls(corpus.token_ids[rows[:, None], places], segments, places, rows)


class MadeJudges:
    """The made judges of one side of a unit, on its records and on all windows of the corpus."""

    def __init__(self, evidence: SideEvidence, truth: NDArray[np.float64], windows: CorpusWindows) -> None:
        """truth: [segments, 64]."""
        self._evidence, self._windows = evidence, windows
        fires = truth[windows.rows[:, None], windows.places] > POSITIVE_SHARE * (evidence.peak or math.inf)
        self._is_positive = fires.any(axis=1)
        unit = evidence.unit.id
        self._name = (unit.layer, unit.index, evidence.side)
        self._errors = np.array([self._error(segment) for segment in windows.segments])
        self._marked = {"detection": np.ones(fires.shape, np.bool_), "fuzzing": self._mark(fires)}

    def values(self, table: Table, n_records: int) -> dict[str, float]:
        """Each metric as it is estimated from records, by `judge, metric`, less what guessing earns."""
        values = {}
        for judge in JUDGES:
            scorer = SCORERS.load(judge)
            provenance = Provenance("none", None, "made", None, None)
            prediction = Prediction(
                *(0, self._evidence.unit.id, judge, Status.OK, (), provenance),
                codec="probabilities",
                n_read=n_records,
                has_report=True,
            )
            trials = [t for t in trials_read(scorer, self._evidence, n_records, False) if t.split == "report"]
            records = tuple(
                PredictedRecord(t.kind, t.rank, t.first, np.array([self._judge(t, table)], np.float32))
                for t in trials
            )
            for score in compute_scores(self._evidence, replace(prediction, records=records)):
                if score.split == "report" and score.value is not None:
                    values[f"{judge}, {score.metric}"] = above_guessing(score.metric, score.value)
        return values

    def true_values(self, table: Table) -> dict[str, float]:
        """The same over all windows of the corpus."""
        values = {}
        is_of_explanation = table[self._windows.token_ids] > 0
        for judge in JUDGES:
            marked = self._marked[judge]
            n_hit = (is_of_explanation & marked).sum(axis=1)
            least = 1 if judge == "detection" else marked.sum(axis=1) / 2
            judged = Judgements(
                ["random"] * len(n_hit),
                np.ones(len(n_hit)),
                probability(np.asarray(n_hit >= least), self._errors),
                self._is_positive,
            )
            for metric, way in JUDGE_METRICS.items():
                value = way.value(judged)
                if value is not None:
                    values[f"{judge}, {metric}"] = above_guessing(metric, value)
        return values

    def _judge(self, trial: Trial, table: Table) -> float:
        """The probability of yes to a window."""
        is_hit = table[np.array(trial.token_ids)] > 0
        if isinstance(trial, MarkedWindow):
            says_yes = bool(is_hit[list(trial.marked)].sum() >= len(trial.marked) / 2)
        else:
            says_yes = bool(is_hit.any())
        error = self._error(self._evidence.by_key[trial.key].segment)
        return float(probability(np.array([says_yes]), np.array([error]))[0])

    def _error(self, segment: int) -> float:
        """What is added to a window's log odds, normally distributed."""
        return NormalDist().inv_cdf((stable_hash("made judge", *self._name, segment) + 0.5) / 2**64)

    def _mark(self, fires: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """The marks of each window: where the unit fires, else random ones, as many as in one that does."""
        generator = np.random.default_rng(0)
        counts = fires.sum(axis=1)[self._is_positive]
        marked = fires.copy()
        for row in np.flatnonzero(~self._is_positive).tolist():
            n = int(generator.choice(counts)) if len(counts) else 1
            marked[row, generator.choice(fires.shape[1], n, replace=False)] = True
        return marked


def probability(says_yes: NDArray[np.bool_], errors: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of yes, by a judge that is wrong where its error is beyond what makes it sure."""
    sure = -NormalDist().inv_cdf(WRONG)
    odds = STEEPNESS * (np.where(says_yes, sure, -sure) + errors)
    values: NDArray[np.float64] = 1 / (1 + np.exp(-odds))
    return values


def above_guessing(metric: str, value: float) -> float:
    """A value less what guessing earns; of the Brier score 1 less its share of 0.25."""
    return 1 - value / NO_OPINION if metric == BRIER else value - GUESSING.get(metric, 0.0)


def evaluate_judges(corpus: str, n_segments: int, n_records: int, folder: Path) -> dict[str, Any]:
    """How much each metric of made judges falls where an explanation is made worse, over the rules' units.

    Beside it stands what the correlation over the corpus loses, and what the metric itself loses there.
    """
    rules = RuleUnits.of(corpus, n_segments)
    visited = Corpus(
        rules.stream.rows(rules.order)[:, RANDOM_START:].astype(np.int64),
        rules.stream.splits(rules.order, rules.seed),
        len(rules.tokenizer),
    )
    windows = CorpusWindows.of(visited, rules.order, rules.seed)
    by_correlation: Falls = defaultdict(list)
    by_itself: Falls = defaultdict(list)
    n_units = 0
    with open_store(str(folder / "made.db"), create=True) as store:
        rules.store(store)
        run = load_run(store)
        for number in range(rules.acts.shape[2]):
            truth = rules.acts[:, RANDOM_START:, number].astype(np.float64)
            unit, tokens = load_unit_to_score(store, run, UnitId(0, number))
            evidence = SideEvidence.of(run, unit, "positive", tokens)
            if not (evidence.peak or 0) > 0:
                continue
            judges = MadeJudges(evidence, truth, windows)
            tables = judge_tables(make_tables(truth, visited))
            scores = {name: judges.values(table, n_records) for name, table in tables.items()}
            true_scores = {name: judges.true_values(table) for name, table in tables.items()}
            correlations = {}
            for name, table in tables.items():
                value, _ = true_scores_of(truth, table, visited, evidence.peak or 0.0)
                correlations[name] = {"correlation, population": value or 0.0}
            add_falls(by_correlation, scores, correlations)
            add_falls(by_itself, true_scores, correlations)
            n_units += "concept" in tables
    return {
        "segments": len(rules.order),
        "records": n_records,
        "units": n_units,
        "estimated": sanity(by_correlation),
        "whole corpus": sanity(by_itself),
    }


def as_text(results: Mapping[str, Any]) -> str:
    """The results as a table."""
    lines = [
        f"{results['segments']:,} segments, {results['units']} units, {results['records']} + "
        f"{results['records']} windows",
        "median loss of the metric (over the whole corpus; of the correlation there), falls where that does",
        f"{'':28}" + "".join(f"{check:>28}" for check in CHECKS),
    ]
    for metric, checks in results["estimated"].items():
        cells = []
        for check in CHECKS:
            own, whole = checks.get(check), results["whole corpus"].get(metric, {}).get(check)
            if own is None or whole is None:
                cells.append("-")
                continue
            falls = "-" if own["falls_as_truth"] is None else f"{own['falls_as_truth']:.0%}"
            figures = f"{own['median_loss']:.2f} ({whole['median_loss']:.2f}; {own['median_true_loss']:.2f})"
            cells.append(f"{figures}, {falls}")
        lines.append(f"{metric:28}" + "".join(f"{cell:>28}" for cell in cells))
    return "\n".join(lines)


def judge_tables(tables: Mapping[str, Table | None]) -> dict[str, Table]:
    """The explanations that are sets of tokens."""
    return {
        name: table
        for name, table in tables.items()
        if table is not None and set(np.unique(table).tolist()) <= {0.0, 1.0}
    }
