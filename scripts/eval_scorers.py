"""How scorers agree with one another and with the truth, on the same units, explanations and splits.

    scripts/eval_scorers.py --corpus brown.jsonl --made made.db --rows rows.jsonl --scorers lexical,detection

The units are made by the rules of the known neurons (scripts/known_neurons/): their activations over the
corpus are collected and stored as those of a model are, so each scorer reads the records that `score` would
read. Each unit has a true explanation and false ones. Printed are, of each scorer, how often the true one has
a higher score than a false one of the same unit, the prompt tokens and the processor's seconds an
explanation, and the rank correlation (Spearman) of each two scorers over units and explanations.

Rows are added to a file, and what is in it is not scored again, so that a run may be interrupted and
continued. `--print` prints the tables of what is there. Of each kind every second unit is in the half
`choose`, by which prompts are chosen, the others in `report`.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path

from known_neurons.table import NEURONS
from score_truth.agreement import ScoredPair, agreement, as_text
from score_truth.made_units import RuleUnits

from neuroexplain.config import EngineConfig, ScoreConfig
from neuroexplain.demo.embedded_model import embedded_model
from neuroexplain.evidence import Explanation, Provenance, Status
from neuroexplain.explaining.engines import open_engines
from neuroexplain.explaining.known_neurons import HALVES
from neuroexplain.explaining.predictions import begin_prediction
from neuroexplain.explaining.trials import SideTrials
from neuroexplain.llm import local
from neuroexplain.runs import Run
from neuroexplain.scorers.base import OpenScorer, compute_scores
from neuroexplain.scoring.codecs import as_stored
from neuroexplain.scoring.side_evidence import SideEvidence
from neuroexplain.scoring.windows import firing_tokens
from neuroexplain.stable_hash import stable_hash
from neuroexplain.store.background import load_unit_to_score
from neuroexplain.store.engine import Store, open_store
from neuroexplain.store.runs import load_run
from neuroexplain.units import UnitId

BY_NOBODY = Provenance("none", None, "table", None, None)
LEAST_POSITIVE = 3  # windows of `report` in which a unit fires, so that it is scored


def main() -> None:
    options = parse_options()
    rows = list(read_rows(options.rows))
    if not options.print:
        with ExitStack() as stack:
            if not options.made.exists():
                say("Making units by the rules of the known neurons ...")
                rules = RuleUnits.of(options.corpus, options.segments)
                with open_store(str(options.made), create=True) as new:
                    rules.store(new)
            store = stack.enter_context(open_store(str(options.made), read_only=True))
            rows += score_each(store, options, {(*row.key, row.scorer, row.model) for row in rows}, stack)
    by_model: dict[str, list[ScoredPair]] = {}
    models = sorted({row.model for row in rows if row.scorer != "embedding"})
    for model in models:
        by_model[model] = [row for row in rows if row.model == model or row.scorer == "embedding"]
    results = {model: agreement(own) for model, own in by_model.items()}
    if options.json:
        print(json.dumps(results, indent=1))
    else:
        print("\n\n".join(f"{model}\n{as_text(own)}" for model, own in results.items()))


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--corpus", help="text to collect from")
    parser.add_argument("--made", type=Path, required=True, help="database of the units; made if it is new")
    parser.add_argument("--rows", type=Path, required=True, help="file of what was scored; it is added to")
    parser.add_argument("--scorers", default="lexical,embedding", help="like lexical,detection")
    parser.add_argument("--local", help="model of this process; by default the embedded one")
    parser.add_argument("--server", help="URL of a vLLM server")
    parser.add_argument("--segments", type=int, default=4_000, help="segments of the corpus to read")
    parser.add_argument("--half", choices=("all", *HALVES), default="all")
    parser.add_argument("--every", type=int, default=1, help="take every n-th of the units that fire")
    parser.add_argument("--units", type=int, help="take the first of them")
    parser.add_argument("--false", type=int, default=5, help="false explanations of each unit")
    parser.add_argument("--records", type=int, help="like --score-records; by default each scorer's own")
    parser.add_argument(
        "--at-once", type=int, default=local.PROMPTS_AT_ONCE, help="prompts of a forward pass in this process"
    )
    parser.add_argument("--print", action="store_true", help="score nothing, print what the file holds")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def read_rows(file: Path) -> Iterator[ScoredPair]:
    """What was scored before."""
    if file.exists():
        for line in file.read_text(encoding="utf-8").splitlines():
            yield ScoredPair(**json.loads(line))


def score_each(
    store: Store, options: argparse.Namespace, scored: set[tuple[str, int, str, str]], stack: ExitStack
) -> Iterator[ScoredPair]:
    """Score what is not in the file yet, and add it there."""
    local.PROMPTS_AT_ONCE = options.at_once
    run = load_run(store)
    names = tuple(options.scorers.split(","))
    model = options.local or (embedded_model() if options.server is None else None)
    engine = EngineConfig(local=model, server=options.server)
    _, scorers = stack.enter_context(
        open_engines(run, engine, ScoreConfig(names, records=options.records), explains=False, tell=say)
    )
    chosen = choose_units(store, run, options)
    say(f"Scoring {len(chosen)} units, {1 + options.false} explanations each, by {options.scorers} ...")
    with options.rows.open("a", encoding="utf-8") as file:
        for number, evidence in chosen:
            _, name, _, true, false = NEURONS[number]
            for scorer in scorers:
                for place, text in enumerate((true, *false[: options.false])):
                    is_known = (name, place, scorer.name, scorer.engine.model) in scored
                    if is_known or (place and not scorer.scorer.reads_explanation):
                        continue
                    row = replace(score_one(evidence, scorer, text), unit=name, place=place)
                    file.write(json.dumps(asdict(row)) + "\n")
                    file.flush()
                    yield row


def choose_units(store: Store, run: Run, options: argparse.Namespace) -> list[tuple[int, SideEvidence]]:
    """The units of a half that fire in some windows of `report` and not in all, with their evidence.

    They come in the order of a hash, so that the first ones are of all kinds.
    """
    chosen, n_of_kind = [], Counter[str]()
    for number, (kind, *_) in enumerate(NEURONS):
        n_of_kind[kind] += 1
        if options.half not in ("all", HALVES[n_of_kind[kind] % 2]):
            continue
        unit, tokens = load_unit_to_score(store, run, UnitId(0, number))
        evidence = SideEvidence.of(run, unit, "positive", tokens)
        if not (evidence.peak or 0) > 0:
            continue
        drawn = [d.record for d in evidence.draw("report") if d.record.key not in evidence.leaking]
        n_positive = sum(bool(firing_tokens(evidence, record).any()) for record in drawn)
        if LEAST_POSITIVE <= n_positive <= len(drawn) - LEAST_POSITIVE:
            chosen.append((number, evidence))
    chosen.sort(key=lambda own: stable_hash(NEURONS[own[0]][1]))
    return chosen[:: options.every][: options.units]


def score_one(evidence: SideEvidence, scorer: OpenScorer, text: str) -> ScoredPair:
    """An explanation's score on `report` and its cost."""
    explanation = Explanation(evidence.unit.id, "table", Status.OK, text, BY_NOBODY, id=1)
    usage, before = scorer.engine.usage.snapshot(), time.process_time()
    begun = begin_prediction(explanation, "whole", scorer, evidence)
    predicted = SideTrials(scorer, evidence, evidence.tokens).extend(begun, (text,), ("report",))
    seconds = time.process_time() - before
    metric, own = scorer.scorer.main_metric, as_stored(predicted)
    value = next(
        (
            score.value
            for score in compute_scores(evidence, own)
            if (score.split, score.metric) == ("report", metric) and score.subset in ("population", "windows")
        ),
        None,
    )
    used = scorer.engine.usage.since(usage)
    computed = None if used.cached_tokens is None else used.prompt_tokens - used.cached_tokens
    tokens = used.prompt_tokens, computed
    return ScoredPair("", 0, scorer.name, scorer.engine.model, value, *tokens, seconds)


if __name__ == "__main__":
    main()
