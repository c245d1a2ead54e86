"""How true the scores are: estimates from kept records against the value over all visited `report` segments.

    scripts/eval_scores.py --corpus texts.jsonl --units 324 --records 12 --json

Real units of a model (by default the embedded one), selective and dense ones, of three layers, as `act` and
as `post` with both sides; for each some explanations, from its own words to a far too broad one. An
explanation is a value for each token of the vocabulary, so its true score over the whole corpus can be
computed. The records are those that `collect` keeps, and the scores those that `score` stores. Printed are
bias, root mean square error and coverage of the interval, of the population score and of Bills' score, over
all units and by group; and by how much each metric falls where an explanation is made worse (sanity checks,
Oikarinen et al. 2025).

    scripts/eval_scores.py --rare 120000 --units 150 --json

Latents that fire in one segment of 100, 1,000 and 10,000 instead, of so many segments made by rule, and
explanations of known false-alarm rates: by what is read of the run's background.

    scripts/eval_scores.py --corpus texts.jsonl --judges --segments 10000 --records 16

Judges that are wrong in one window of ten, on units made by rule: what each of their metrics loses where an
explanation is made worse.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from score_truth.corpus import Corpus, true_scores_of
from score_truth.explanations import CHECKS, Table, make_tables
from score_truth.made_judges import as_text as judges_as_text
from score_truth.made_judges import evaluate_judges
from score_truth.made_units import rule_activations, store_made_units
from score_truth.rare_units import N_BACKGROUND, evaluate_rare
from score_truth.rare_units import as_text as rare_as_text
from score_truth.real_units import Chosen, Recorder, choose_units
from score_truth.summary import Estimate, Falls, add_falls, sanity, summary

from neuroexplain.collecting.run import run_collect
from neuroexplain.config import CollectConfig
from neuroexplain.corpus.reading import prepare_text
from neuroexplain.corpus.token_stream import TokenStream
from neuroexplain.corpus.visiting_order import visiting_order
from neuroexplain.demo.embedded_model import embedded_model
from neuroexplain.errors import LlmReplyError
from neuroexplain.evidence import PredictedRecord, Prediction, Provenance, Score, Status
from neuroexplain.explaining.rendering import list_peak_tokens
from neuroexplain.lookup import Vocabulary
from neuroexplain.runs import Run
from neuroexplain.scorers.base import SCORERS, compute_scores, trials_read
from neuroexplain.scoring.codecs import as_stored
from neuroexplain.scoring.side_evidence import SideEvidence, background_draw_of
from neuroexplain.store.background import load_unit_to_score
from neuroexplain.store.engine import Store, open_store
from neuroexplain.store.runs import load_run
from neuroexplain.store.vocabulary import load_vocabulary
from neuroexplain.subject.load import load_subject
from neuroexplain.subject.model import Subject
from neuroexplain.units import RANDOM_START, UnitId

# Runs of made units: as latents of an SAE, whose background `lexical` reads, and as neurons, which have none.
MADE = {"made": N_BACKGROUND, "made, no background": 0}
METRICS = {  # reported metrics, by the subset and the metric of a score
    "correlation, population": ("population", "correlation"),
    "auprc, population": ("population", "auprc"),
    "correlation, top_and_random": ("top_and_random", "correlation"),
    "r_squared, top_and_random": ("top_and_random", "r_squared"),
    "absolute_deviation_explained, top_and_random": ("top_and_random", "absolute_deviation_explained"),
}


def main() -> None:
    options = parse_options()
    with tempfile.TemporaryDirectory() as folder:
        if options.judges:
            results = evaluate_judges(options.corpus, options.segments, options.records, Path(folder))
        elif options.rare is not None:
            results = evaluate_rare(options.rare, options.units, options.seed, Path(folder))
        else:
            results = evaluate(options, Path(folder))
    if options.json:
        print(json.dumps(results, indent=1))
    else:
        judged_or_rare = judges_as_text if options.judges else rare_as_text
        print(as_text(results) if options.rare is None and not options.judges else judged_or_rare(results))


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    text = parser.add_mutually_exclusive_group(required=True)
    text.add_argument("--corpus", help="text that the model reads")
    text.add_argument("--rare", type=int, metavar="SEGMENTS", help="rare latents in segments made by rule")
    parser.add_argument("--judges", action="store_true", help="made judges of units made by rule")
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
    layers = (n_layers * 2 // 15, n_layers * 2 // 5, n_layers * 5 // 6)
    if options.layers is not None:
        layers = tuple(map(int, options.layers.split(",")))
    configs = configs_of(options, layers)
    stream = tokenize(configs["act"], subject, folder)
    if stream.n_segments < options.segments:
        say(f"The corpus has {stream.n_segments:,} segments, not {options.segments:,}: it is read whole.")
    order = visiting_order(stream.n_segments, "random", options.seed, options.segments)
    chosen = choose_units(subject, stream, order, layers, options.units)
    corpus = Corpus(
        stream.rows(order)[:, RANDOM_START:].astype(np.int64),
        stream.splits(order, options.seed),
        len(subject.unembedding),
    )
    recorder = Recorder(subject, chosen)
    with ExitStack() as stack:
        stores = {
            name: stack.enter_context(open_store(str(folder / f"{name}.db"), create=True))
            for name in ("act", "post", *MADE)
        }
        for activation, config in configs.items():
            say(f"Reading {len(order):,} segments, collecting {activation} ...")
            with recorder.recording(activation == "post"):
                for progress in run_collect(stores[activation], config, subject):
                    if progress.note:
                        say(progress.note)
        say("Making units by the rules of the known neurons ...")
        rules = rule_activations(configs["act"], subject.tokenizer, order)
        values, sides = recorder.activations(len(order)), list(chosen)
        for name, n_background in MADE.items():
            like = load_run(stores["act"])
            drawn = {field: getattr(like, field) for field in ("top_k", "n_random", "n_sampled", "seed")}
            vocabulary = load_vocabulary(stores["act"], like.id)
            told = stores[name], drawn, vocabulary, like.tokenizer_sha256
            store_made_units(*told, stream, order, rules, n_background)
            sides += made_sides(rules, name)
            values |= {(0, name, n): rules[:, RANDOM_START:, n] for n in range(rules.shape[2])}
        say(f"Scoring {len(sides):,} sides of units ...")
        results = score_all(stores, sides, values, corpus, options.records)
    return results | {"segments": len(order), "records": options.records, "layers": list(layers)}


def configs_of(options: argparse.Namespace, layers: tuple[int, ...]) -> dict[str, CollectConfig]:
    """What is collected: `act`, and `post` with both signs."""
    shared: dict[str, Any] = {
        "model": options.model or embedded_model(),
        "dataset": (options.corpus,),
        "layers": layers,
        "segments": options.segments,
        "seed": options.seed,
        "batch_size": 16,
        "dtype": "float32",
        "device": "cpu",
    }
    return {
        "act": CollectConfig(**shared, activation="act"),
        "post": CollectConfig(**shared, activation="post", sign="both"),
    }


def tokenize(config: CollectConfig, subject: Subject, folder: Path) -> TokenStream:
    """The tokens of the corpus."""
    steps = prepare_text(config, subject.tokenizer, folder / "corpus.tokens")
    while True:
        try:
            next(steps)
        except StopIteration as end:
            stream: TokenStream = end.value.whole()
            return stream


def made_sides(rules: NDArray[np.float32], name: str) -> list[Chosen]:
    """The made units that fire in the visited text, of the run of this name."""
    fires = rules[:, RANDOM_START:].max(axis=(0, 1)) > 0
    return [Chosen(name, "positive", UnitId(0, n), name) for n in np.flatnonzero(fires).tolist()]


def score_all(
    stores: Mapping[str, Store],
    sides: Sequence[Chosen],
    activations: Mapping[tuple[int, str, int], NDArray[np.float32]],
    corpus: Corpus,
    n_records: int,
) -> dict[str, Any]:
    """The results over all real units, by group, and how much each metric falls."""
    runs = {name: load_run(store) for name, store in stores.items()}
    lexical = Lexical(stores["act"], runs["act"], corpus)
    texts = {side: own_text(stores[side.activation], runs[side.activation], side) for side in sides}
    estimates: dict[str, list[Estimate]] = {"population": [], "bills": []}
    falls: dict[str, Falls] = {side.density: defaultdict(list) for side in sides}
    for number, side in enumerate(sides):
        truth = truth_of(side, activations[side.unit.layer, side.activation, side.unit.index])
        evidence = evidence_of(stores[side.activation], runs[side.activation], side)
        other = next((x for x in (*sides[number + 1 :], *sides) if x.group == side.group and x != side), side)
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
                    interval = score.ci_low, score.ci_high
                    is_made = side.activation in MADE
                    estimates[key].append(Estimate(side.group, score.value, *interval, true_value, is_made))
            scores[name] = metric_values(own, side)
            true_scores[name] = {"correlation, population": true_value, "auprc, population": true_auprc}
        add_falls(falls[side.density], scores, true_scores)
    real = {key: [e for e in own if not e.is_made] for key, own in estimates.items()}
    return {
        **{key: summary(own) for key, own in real.items()},
        "groups": {
            group: {key: summary([e for e in own if e.group == group]) for key, own in estimates.items()}
            for group in sorted({e.group for e in estimates["population"]})
        },
        "sanity": {units: sanity(own) for units, own in falls.items()},
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


def truth_of(side: Chosen, values: NDArray[np.float32]) -> NDArray[np.float64]:
    """The true values of a side: a on a run of one sign, relu of it on a run of both."""
    values = values.astype(np.float64)
    if side.activation != "post":
        return values
    return np.maximum(values if side.side == "positive" else -values, 0.0)


def evidence_of(store: Store, run: Run, side: Chosen) -> SideEvidence:
    unit, tokens = load_unit_to_score(store, run, side.unit)
    return SideEvidence.of(run, unit, side.side, tokens)


def own_text(store: Store, run: Run, side: Chosen) -> str:
    """The peak tokens of its `explain` records."""
    evidence = evidence_of(store, run, side)
    try:
        return list_peak_tokens(evidence.explain_records(10), evidence.tokens)
    except LlmReplyError:  # white space alone
        return "words"


class Lexical:
    """The predictions of the simulator `lexical` for each token of the visited text."""

    def __init__(self, store: Store, run: Run, corpus: Corpus) -> None:
        from neuroexplain.llm.local import LocalEngine

        self._tokens = Vocabulary.load(store, run.id)
        self._simulator: Any = SCORERS.load("lexical").open(LocalEngine(embedded_model()), run)
        self._ids = np.unique(corpus.token_ids)
        self._size = corpus.vocabulary

    def table(self, text: str) -> Table:
        """A value for each token id; 0 for tokens that do not occur."""
        (predicted,) = self._simulator.simulate(text, [self._ids.tolist()], self._tokens).trials
        table = np.zeros(self._size, np.float32)
        table[self._ids] = predicted.values
        return table


def scores_of(evidence: SideEvidence, table: Table, n_records: int) -> list[Score]:
    """The scores on `report` of an explanation that predicts a value for each token."""
    scorer = SCORERS.load("lexical")
    provenance = Provenance("none", None, "table", None, None)
    prediction = Prediction(
        *(0, evidence.unit.id, "lexical", Status.OK, (), provenance),
        n_read=n_records,
        with_bills=True,
        n_background=len(evidence.background_frame()) or None,
    )
    trials = trials_read(scorer, evidence, n_records, True, background_draw_of(prediction))
    records = tuple(
        PredictedRecord(t.kind, t.rank, t.first, table[np.array(t.token_ids)].astype(np.float32))
        for t in trials
    )
    stored = as_stored(replace(prediction, records=records))
    return [s for s in compute_scores(evidence, stored) if s.split == "report"]


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
    for units, metrics in results["sanity"].items():
        yield f"\n{units + ' units: mean loss (true loss), falls if truth does':46} " + " ".join(
            f"{c:>20}" for c in CHECKS
        )
        for metric, checks in metrics.items():
            yield f"{metric:46} " + " ".join(f"{loss_text(checks.get(check)):>20}" for check in CHECKS)


def loss_text(loss: Mapping[str, Any] | None) -> str:
    if loss is None:
        return "-"
    falls = "-" if loss["falls_as_truth"] is None else f"{loss['falls_as_truth']:.0%}"
    return f"{loss['mean_loss']:.2f} ({loss['mean_true_loss']:.2f}), {falls}"


if __name__ == "__main__":
    main()
