"""How true the scores are: estimates from kept records against the value over all visited `report` segments.

    scripts/eval_scores.py --corpus texts.jsonl --units 324 --records 12 --json

Real units of a model (by default the embedded one), selective and dense ones, of three layers, as `act` and
as `post` with both sides; for each some explanations, from its own words to a far too broad one. An
explanation is a value for each token of the vocabulary, so its true score over the whole corpus can be
computed. The records are those that `collect` keeps, and the scores those that `score` stores. Printed are
bias, root mean square error and coverage of the interval, of the population score and of Bills' score, over
all units and by group; and by how much each metric falls where an explanation is made worse (sanity checks,
Oikarinen et al. 2025).
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from neuroexplain.collecting.run import run_collect
from neuroexplain.config import CollectConfig
from neuroexplain.corpus.reading import prepare_text
from neuroexplain.corpus.token_stream import TokenStream
from neuroexplain.corpus.visiting_order import visiting_order
from neuroexplain.errors import LlmReplyError
from neuroexplain.evidence import PredictedRecord, Prediction, Provenance, Score, Status
from neuroexplain.explaining.explainers import list_peak_tokens
from neuroexplain.lookup import Vocabulary
from neuroexplain.runs import Run
from neuroexplain.scorers.base import SCORERS, compute_scores, trials_read
from neuroexplain.scoring.codecs import as_stored
from neuroexplain.scoring.population import POSITIVE_SHARE, weighted_auprc, weighted_correlation
from neuroexplain.scoring.side_evidence import SideEvidence, tokens_needed
from neuroexplain.store.engine import Store, open_store
from neuroexplain.store.runs import load_run
from neuroexplain.store.units import load_unit
from neuroexplain.store.vocabulary import load_tokens
from neuroexplain.subject.load import embedded_model, load_subject
from neuroexplain.subject.model import Subject
from neuroexplain.units import RANDOM_START, Side, UnitId

Table = NDArray[np.float32]  # an explanation: a prediction for each token of the vocabulary
REPORT = 2  # the place of `report` in SPLITS
SELECTION_SEGMENTS = 64  # by which units are called selective or dense
LEAST_VISITS = 2  # of a token in `explain` for its mean to be a prediction
METRICS = {  # reported metrics, by the subset and the metric of a score
    "correlation, population": ("population", "correlation"),
    "auprc, population": ("population", "auprc"),
    "correlation, top_and_random": ("top_and_random", "correlation"),
    "r_squared, top_and_random": ("top_and_random", "r_squared"),
    "absolute_deviation_explained, top_and_random": ("top_and_random", "absolute_deviation_explained"),
}
CHECKS = ("half dropped", "as many wrong", "five times too broad")


@dataclass(frozen=True)
class Chosen:
    """One side of a unit that is evaluated."""

    activation: str  # act or post
    side: Side
    unit: UnitId
    density: str  # selective or dense

    @property
    def group(self) -> str:
        side = "" if self.activation == "act" else f" {self.side}"
        return f"layer {self.unit.layer} {self.activation}{side}, {self.density}"


@dataclass(frozen=True)
class Corpus:
    """The visited segments, in the order of visit."""

    token_ids: NDArray[np.int64]  # [segments, 64], tokens 64..127
    splits: NDArray[np.int8]  # [segments]
    vocabulary: int  # its size

    def report(self, values: NDArray[Any]) -> NDArray[Any]:
        """The values [segments, 64] of all `report` tokens."""
        return values[self.splits == REPORT].reshape(-1)


@dataclass(frozen=True)
class Estimate:
    """One score beside its true value over the corpus."""

    group: str
    value: float
    low: float | None
    high: float | None
    truth: float


def main() -> None:
    options = parse_options()
    with tempfile.TemporaryDirectory() as folder:
        results = evaluate(options, Path(folder))
    if options.json:
        print(json.dumps(results, indent=1))
    else:
        print(as_text(results))


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--corpus", required=True, help="text that the model reads")
    parser.add_argument("--units", type=int, default=324, help="sides of units to evaluate, of all groups")
    parser.add_argument("--records", type=int, default=12, help="sampled ones to score on, and random ones")
    parser.add_argument("--segments", type=int, default=2000, help="segments to read")
    parser.add_argument("--layers", default=None, help="like 4,12,25; by default three of the model's")
    parser.add_argument("--model", default=None, help="by default the embedded one")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def evaluate(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Collect, compute the true values, and compare."""
    subject = load_subject(options.model or embedded_model(), "float32", "cpu")
    n_layers = len(subject.layers)
    layers = (
        (n_layers * 2 // 15, n_layers * 2 // 5, n_layers * 5 // 6)
        if options.layers is None
        else tuple(map(int, options.layers.split(",")))
    )
    shared = {
        "model": options.model or embedded_model(),
        "dataset": (options.corpus,),
        "layers": layers,
        "segments": options.segments,
        "seed": options.seed,
        "batch_size": 16,
        "dtype": "float32",
        "device": "cpu",
    }
    configs = {
        "act": CollectConfig(**shared, activation="act"),
        "post": CollectConfig(**shared, activation="post", sign="both"),
    }
    stream = tokenize(configs["act"], subject, folder)
    if stream.n_segments < options.segments:
        say(f"The corpus has {stream.n_segments:,} segments, not {options.segments:,}: it is read whole.")
    order = visiting_order(stream.n_segments, "random", options.seed, options.segments)
    chosen = choose_units(subject, stream, order, layers, options.units)
    recorder = Recorder(subject, chosen)
    stores = {}
    for activation, config in configs.items():
        say(f"Reading {len(order):,} segments, collecting {activation} ...")
        stores[activation] = open_store(str(folder / f"{activation}.db"), create=True)
        with recorder.recording(activation == "post"):
            for progress in run_collect(stores[activation], config, subject):
                if progress.note:
                    say(progress.note)
    corpus = Corpus(
        stream.rows(order)[:, RANDOM_START:].astype(np.int64),
        stream.splits(order, options.seed),
        len(subject.unembedding),
    )
    activations = recorder.activations(len(order))
    say(f"Scoring {len(chosen):,} sides of units, {len(set(corpus.splits.tolist()) - {-1})} splits ...")
    results = score_all(stores, chosen, activations, corpus, options.records)
    for store in stores.values():
        store.close()
    return results | {"segments": len(order), "records": options.records, "layers": list(layers)}


def tokenize(config: CollectConfig, subject: Subject, folder: Path) -> TokenStream:
    steps = prepare_text(config, subject.tokenizer, folder / "corpus.tokens")
    while True:
        try:
            next(steps)
        except StopIteration as end:
            stream: TokenStream = end.value.whole()
            return stream


def choose_units(
    subject: Subject, stream: TokenStream, order: NDArray[np.int64], layers: Sequence[int], n: int
) -> list[Chosen]:
    """Sides of each group, by the share of the sum of squares that the strongest 1% of tokens have."""
    recorder = Recorder(subject, [], layers)
    with recorder.recording(True), torch.inference_mode():
        for rows in order[:SELECTION_SEGMENTS].reshape(-1, 16):
            subject.model(torch.from_numpy(stream.rows(rows).astype(np.int64)), use_cache=False)
    kinds: list[tuple[str, Side]] = [("act", "positive"), ("post", "positive"), ("post", "negative")]
    n_groups = 2 * len(kinds) * len(layers)
    each, generator = -(-n // n_groups), np.random.default_rng(0)
    chosen = []
    for layer in layers:
        for activation, side in kinds:
            values = np.concatenate(recorder.values[layer, activation]).reshape(-1, recorder.width(layer))
            strength = np.sort(np.maximum(values if side == "positive" else -values, 0) ** 2, axis=0)
            total = strength.sum(axis=0)
            share = strength[-len(strength) // 100 :].sum(axis=0) / np.where(total > 0, total, np.inf)
            ranked = np.argsort(-share, kind="stable")
            ranked = ranked[total[ranked] > 0]
            third = len(ranked) // 3
            for density, part in (("selective", ranked[:third]), ("dense", ranked[-third:])):
                for index in generator.choice(part, each, replace=False).tolist():
                    chosen.append(Chosen(activation, side, UnitId(layer, index), density))
    return chosen


class Recorder:
    """Records activations of chosen units at tokens 64..127 while something else runs the model."""

    def __init__(self, subject: Subject, chosen: Sequence[Chosen], layers: Sequence[int] = ()) -> None:
        self.subject = subject
        self.units: dict[tuple[int, str], list[int] | slice] = {
            (layer, activation): slice(None) for layer in layers for activation in ("act", "post")
        }
        for side in chosen:
            units = self.units.setdefault((side.unit.layer, side.activation), [])
            if isinstance(units, list) and side.unit.index not in units:
                units.append(side.unit.index)
        self.values: dict[tuple[int, str], list[NDArray[np.float32]]] = {key: [] for key in self.units}
        self._handles: list[Any] = []

    def width(self, layer: int) -> int:
        return int(self.values[layer, "act"][0].shape[2])

    def recording(self, is_on: bool) -> Recorder:
        self._is_on = is_on
        return self

    def __enter__(self) -> None:
        if not self._is_on:
            return
        for layer, activation in self.units:
            mlp = self.subject.layers[layer].mlp

            def record(module: Any, inputs: Any, output: Any = None, key: Any = (layer, activation)) -> None:
                values = inputs[0] if output is None else output
                self.values[key].append(
                    values[:, RANDOM_START:, self.units[key]].float().cpu().numpy().copy()
                )

            if activation == "act":
                self._handles.append(mlp.act_fn.register_forward_hook(record))
            else:
                self._handles.append(mlp.down_proj.register_forward_pre_hook(record))

    def __exit__(self, *error: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def activations(self, n_segments: int) -> dict[tuple[int, str, int], NDArray[np.float32]]:
        """[segments, 64] by layer, activation and unit; padding of the last batch is left out."""
        by_unit = {}
        for (layer, activation), parts in self.values.items():
            values = np.concatenate(parts)[:n_segments]
            for place, index in enumerate(self.units[layer, activation]):  # type: ignore[arg-type]
                by_unit[layer, activation, index] = values[:, :, place]
        return by_unit


def score_all(
    stores: Mapping[str, Store],
    chosen: Sequence[Chosen],
    activations: Mapping[tuple[int, str, int], NDArray[np.float32]],
    corpus: Corpus,
    n_records: int,
) -> dict[str, Any]:
    runs = {activation: load_run(store) for activation, store in stores.items()}
    lexical = Lexical(stores["act"], runs["act"])
    texts = {side: own_text(stores[side.activation], runs[side.activation], side) for side in chosen}
    estimates: dict[str, list[Estimate]] = {"population": [], "bills": []}
    falls: dict[tuple[str, str], list[tuple[float, float]]] = defaultdict(list)  # (kept share, true share)
    for number, side in enumerate(chosen):
        values = activations[side.unit.layer, side.activation, side.unit.index].astype(np.float64)
        truth = truth_of(side, values)
        evidence = evidence_of(stores[side.activation], runs[side.activation], side)
        other = next(x for x in (*chosen[number + 1 :], *chosen) if x.group == side.group and x != side)
        tables = {
            "its peak tokens": lexical.table(texts[side]),
            "another's peak tokens": lexical.table(texts[other]),
            **make_tables(truth, corpus),
        }
        scores: dict[str, dict[str, float]] = {}
        true_scores: dict[str, dict[str, float]] = {}
        for name, table in tables.items():
            if table is None:
                continue
            true_value, true_auprc = true_scores_of(truth, table, corpus, evidence.peak or 0.0)
            if true_value is None:
                continue
            own = {(s.subset, s.metric): s for s in scores_of(evidence, table, n_records)}
            for key, subset in (("population", "population"), ("bills", bills_subset(side))):
                score = own.get((subset, "correlation"))
                if score is not None and score.value is not None:
                    estimates[key].append(
                        Estimate(side.group, score.value, score.ci_low, score.ci_high, true_value)
                    )
            scores[name] = metric_values(own, side)
            true_scores[name] = {"correlation, population": true_value, "auprc, population": true_auprc}
        add_falls(falls, scores, true_scores)
    return {
        **{key: summary(own) for key, own in estimates.items()},
        "groups": {
            group: {key: summary([e for e in own if e.group == group]) for key, own in estimates.items()}
            for group in sorted({e.group for e in estimates["population"]})
        },
        "sanity": sanity(falls),
    }


def bills_subset(side: Chosen) -> str:
    return "top_and_random" if side.side == "positive" else "bottom_and_random"


def metric_values(scores: Mapping[tuple[str, str], Score], side: Chosen) -> dict[str, float]:
    """The value of each metric that is defined."""
    values = {}
    for name, (subset, metric) in METRICS.items():
        own_subset = bills_subset(side) if subset == "top_and_random" else subset
        score = scores.get((own_subset, metric))
        if score is not None and score.value is not None:
            values[name] = score.value
    return values


def truth_of(side: Chosen, values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The true values of a side: a on a run of one sign, relu of it on a run of both."""
    if side.activation == "act":
        return values
    return np.maximum(values if side.side == "positive" else -values, 0.0)


def evidence_of(store: Store, run: Run, side: Chosen) -> SideEvidence:
    unit = load_unit(store, run, side.unit)
    return SideEvidence.of(run, unit, side.side, load_tokens(store, run.id, tokens_needed(unit.exemplars)))


def own_text(store: Store, run: Run, side: Chosen) -> str:
    """The peak tokens of its `explain` records."""
    evidence = evidence_of(store, run, side)
    try:
        return list_peak_tokens(evidence.explain_records(10), evidence.tokens)
    except LlmReplyError:  # white space alone
        return "words"


class Lexical:
    """The predictions of the simulator `lexical` for every token of the vocabulary."""

    def __init__(self, store: Store, run: Run) -> None:
        from neuroexplain.llm.local import LocalEngine

        self._tokens = Vocabulary.load(store, run.id)
        self._simulator: Any = SCORERS.load("lexical").open(LocalEngine(embedded_model()), run)

    def table(self, text: str) -> Table:
        """A value for each token id."""
        ids = list(range(max(self._tokens) + 1))
        (predicted,) = self._simulator.simulate(text, [ids], self._tokens).trials
        table: Table = predicted.values
        return table


def make_tables(truth: NDArray[np.float64], corpus: Corpus) -> dict[str, Table | None]:
    """Explanations made from the unit's mean activation by token in `explain`, and worse ones.

    The concept is the set of tokens with the largest means, as many as have half of the sum of squares.
    """
    is_explain = corpus.splits == 0
    ids, values = corpus.token_ids[is_explain].reshape(-1), truth[is_explain].reshape(-1)
    counts = np.bincount(ids, minlength=corpus.vocabulary)
    sums = np.bincount(ids, values, minlength=corpus.vocabulary)
    means = np.where(counts >= LEAST_VISITS, sums / np.maximum(counts, 1), 0.0)
    generator = np.random.default_rng(len(ids))
    tables: dict[str, Table | None] = {"mean by token": means.astype(np.float32)}
    concept = choose_concept(means, counts)
    if concept is None:
        return tables
    n_segments = count_segments(concept, corpus)
    dropped = concept.copy()
    members = generator.permutation(np.flatnonzero(concept))
    dropped[drop_half(members, counts)] = False
    tables |= {"concept": concept.astype(np.float32), CHECKS[0]: dropped.astype(np.float32)}
    for check, factor in ((CHECKS[1], 2), (CHECKS[2], 5)):
        wider = widen(concept, factor, n_segments, counts, corpus, generator)
        tables[check] = None if wider is None else wider.astype(np.float32)
    return tables


def choose_concept(means: NDArray[np.float64], counts: NDArray[np.int64]) -> NDArray[np.bool_] | None:
    """The tokens with the largest means that have half of the sum of squares; None if it is a single one."""
    strength = counts * np.maximum(means, 0) ** 2
    order = np.argsort(-means, kind="stable")
    covered = np.cumsum(strength[order]) / max(float(strength.sum()), 1e-30)
    concept = np.zeros(len(means), np.bool_)
    concept[order[: int(np.searchsorted(covered, 0.5)) + 1]] = True
    concept &= counts > 0
    return concept if concept.sum() >= 2 else None


def drop_half(members: NDArray[np.int64], counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Members that have half of all their occurrences together."""
    covered = np.cumsum(counts[members]) / counts[members].sum()
    return members[: int(np.searchsorted(covered, 0.5)) + 1][: len(members) - 1]


def count_segments(concept: NDArray[np.bool_], corpus: Corpus) -> int:
    """How many segments have a token of the concept."""
    return int(concept[corpus.token_ids].any(axis=1).sum())


def widen(
    concept: NDArray[np.bool_],
    factor: int,
    n_segments: int,
    counts: NDArray[np.int64],
    corpus: Corpus,
    generator: np.random.Generator,
) -> NDArray[np.bool_] | None:
    """The concept with wrong tokens, so that it fires in `factor` times as many segments.

    None if the corpus has not so many segments.
    """
    if factor * n_segments > 0.9 * len(corpus.token_ids):
        return None
    wider = concept.copy()
    hit = concept[corpus.token_ids].any(axis=1)
    others = generator.permutation(np.flatnonzero((counts > 0) & ~concept))
    by_token = np.argsort(corpus.token_ids.reshape(-1), kind="stable")
    sorted_ids = corpus.token_ids.reshape(-1)[by_token]
    for token_id in others.tolist():
        first, last = np.searchsorted(sorted_ids, [token_id, token_id + 1])
        own = by_token[first:last] // corpus.token_ids.shape[1]
        if hit.sum() + len(np.unique(own)) > 1.1 * factor * n_segments:
            continue
        wider[token_id] = True
        hit[own] = True
        if hit.sum() >= factor * n_segments:
            return wider
    return None


def scores_of(evidence: SideEvidence, table: Table, n_records: int) -> list[Score]:
    """The scores on `report` of an explanation that predicts a value for each token."""
    scorer = SCORERS.load("lexical")
    trials = trials_read(scorer, evidence, n_records, True)
    records = tuple(
        PredictedRecord(t.kind, t.rank, t.first, table[np.array(t.token_ids)].astype(np.float32))
        for t in trials
    )
    provenance = Provenance("none", None, "table", None, None)
    prediction = Prediction(
        0, evidence.unit.id, "lexical", Status.OK, records, provenance, n_read=n_records, with_bills=True
    )
    return [s for s in compute_scores(evidence, as_stored(prediction)) if s.split == "report"]


def true_scores_of(
    truth: NDArray[np.float64], table: Table, corpus: Corpus, peak: float
) -> tuple[float | None, float]:
    """Correlation and AUPRC over all `report` tokens; nan for an AUPRC without a positive."""
    predicted = table.astype(np.float16).astype(np.float64)[corpus.report(corpus.token_ids)]
    values = corpus.report(truth)
    ones = np.ones(len(values))
    auprc = weighted_auprc(predicted, values > POSITIVE_SHARE * peak, ones)
    return weighted_correlation(predicted, values, ones), math.nan if auprc is None else auprc


def add_falls(
    falls: dict[tuple[str, str], list[tuple[float, float]]],
    scores: Mapping[str, Mapping[str, float]],
    true_scores: Mapping[str, Mapping[str, float]],
) -> None:
    """Add each metric's loss and the true loss, as shares of the concept's own value."""
    for check in CHECKS:
        if check not in scores or "concept" not in scores:
            continue
        for metric, before in scores["concept"].items():
            after = scores[check].get(metric)
            name = metric if metric in true_scores["concept"] else "correlation, population"
            true_before, true_after = true_scores["concept"][name], true_scores[check][name]
            if after is not None and before > 0 and true_before > 0:
                falls[metric, check].append(
                    ((before - after) / before, (true_before - true_after) / true_before)
                )


def sanity(falls: Mapping[tuple[str, str], Sequence[tuple[float, float]]]) -> dict[str, Any]:
    """For each metric and check: the share of units whose score falls, and the loss beside the true one."""
    results: dict[str, Any] = {}
    for (metric, check), pairs in falls.items():
        lost, truth = np.array(pairs).T
        results.setdefault(metric, {})[check] = {
            "falls": float((lost > 0).mean()),
            "median_loss": float(np.median(lost)),
            "median_true_loss": float(np.median(truth)),
            "share_of_true_loss": float(np.median(lost) / np.median(truth)) if np.median(truth) else None,
            "n": len(pairs),
        }
    return results


def summary(estimates: Sequence[Estimate]) -> dict[str, Any]:
    """Bias, root mean square error and coverage of the interval."""
    if not estimates:
        return {"bias": None, "rmse": None, "coverage": None, "n": 0}
    errors = np.array([e.value - e.truth for e in estimates])
    covered = [e.low <= e.truth <= e.high for e in estimates if e.low is not None and e.high is not None]
    return {
        "bias": float(errors.mean()),
        "rmse": float(np.sqrt((errors**2).mean())),
        "coverage": float(np.mean(covered)) if covered else None,
        "n": len(estimates),
    }


def as_text(results: Mapping[str, Any]) -> str:
    return "\n".join(lines_of(results))


def lines_of(results: Mapping[str, Any]) -> Iterator[str]:
    yield f"{results['segments']:,} segments, {results['records']} + {results['records']} records"
    yield f"{'':48} {'bias':>7} {'rmse':>6} {'cover':>6} {'n':>5}"
    groups = {"all": {key: results[key] for key in ("population", "bills")}, **results["groups"]}
    for group, by_score in groups.items():
        for key, own in by_score.items():
            coverage = "-" if own["coverage"] is None else f"{own['coverage']:.3f}"
            if own["n"]:
                figures = f"{own['bias']:+7.3f} {own['rmse']:6.3f} {coverage:>6} {own['n']:5}"
                yield f"{group + ', ' + key:48} {figures}"
    yield ""
    yield f"{'loss, median (true loss)':48} " + " ".join(f"{check:>22}" for check in CHECKS)
    for metric, checks in results["sanity"].items():
        cells = (checks.get(check) for check in CHECKS)
        texts = (
            "-" if c is None else f"{c['median_loss']:.2f} ({c['median_true_loss']:.2f}), {c['falls']:.0%}"
            for c in cells
        )
        yield f"{metric:48} " + " ".join(f"{text:>22}" for text in texts)


if __name__ == "__main__":
    main()
