"""Measure how good an explainer's hypotheses are, on neurons whose true explanation is known:

    python scripts/eval_explainers.py --neurons tests/known/neurons.json --local MODEL --explainer category
    python scripts/eval_explainers.py --neurons FILE.json --server URL --candidates 3 --json

Or on real units of a database, by population score; nothing is stored:

    python scripts/eval_explainers.py --db smollm2.db --sample 30 --local MODEL --explainer category

FILE is that of eval_simulators.py, which has the halves `choose` and `report` too. The explainer reads each
neuron's top records of even rank. A simulator predicts the top records of odd rank and the random ones from
the hypothesis, and so it is scored; of several candidates that is taken whose rule scores best on the
records that were read. With --revise the explainer is shown the mistakes of the best one's rule on the
records that were read, and its new answer is another candidate. A failed answer and an undefined score count
as 0.

rule_share_of_true and whole_share_of_true are ratios of means: the scores of the hypotheses' rules, or of
these with their examples, over those of the true explanations. beyond_words is that of the whole without the
tokens whose words it names; bare_list_beyond_words that of the explainer `tokens`, which lists peak tokens.
*_error is a standard error over neurons. wins counts the neurons whose rule scores above those of five other
neurons; copies the rules that are a worked example's answer or repeat the prompt; failed those without any.

Of real units the truth is not known. Means of population scores on `report` are given: of the rules, of the
wholes, of the bare lists, and of the rule of the next unit of the sample on the same records (other_rule);
wins counts the units whose rule scores above the rules of five others.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from types import SimpleNamespace
from typing import Any

import numpy as np
from explainer_truth.judging import Judge, Scores, find_mistakes, judged_places, read_places
from rich.console import Console
from rich.progress import track
from rich.table import Table

from neuroexplain.cli.select_units import sample_units
from neuroexplain.config import EngineConfig, ExplainConfig
from neuroexplain.demo.embedded_model import embedded_model
from neuroexplain.errors import LlmReplyError, NeuroexplainError
from neuroexplain.evidence import Explanation, Provenance, Status
from neuroexplain.explaining.engines import open_engine
from neuroexplain.explaining.explainers import EXPLAINERS
from neuroexplain.explaining.hypotheses import ask_explainer, ask_reviser
from neuroexplain.explaining.known_neurons import HALVES, NO_TOKENIZER, KnownNeuron, read_neurons
from neuroexplain.explaining.plan import ExplainTask, Requests
from neuroexplain.explaining.predictions import begin_prediction
from neuroexplain.explaining.rendering import list_peak_tokens
from neuroexplain.explaining.replies import is_copy
from neuroexplain.explaining.run import headline_of
from neuroexplain.explaining.side import explain_side
from neuroexplain.explaining.trials import SideTrials
from neuroexplain.llm.engine import Engine
from neuroexplain.runs import Run
from neuroexplain.scorers.base import SCORERS, OpenScorer, compute_scores
from neuroexplain.scoring.side_evidence import SideEvidence, tokens_needed
from neuroexplain.store.engine import Store, open_store
from neuroexplain.store.runs import load_run
from neuroexplain.store.units import list_unit_ids, load_unit
from neuroexplain.store.vocabulary import load_tokens
from neuroexplain.units import UnitId

UNIT = UnitId(0, 0)  # stands for every known neuron
N_OTHERS = 5  # neurons whose hypotheses a win is over


@dataclass(frozen=True)
class Result:
    """A neuron's hypothesis, how it scores, and what it is compared with."""

    neuron: KnownNeuron
    text: str  # empty if every attempt failed
    reason: str  # of a failed attempt
    rule: Scores
    hypothesis: Scores  # of the rule with its examples
    true: Scores
    bare_list: Scores
    others: list[float]  # scores of other neurons' rules on this neuron's records
    is_copy: bool

    @property
    def won(self) -> bool:
        return all(self.rule.all_tokens > other for other in self.others)


def explain(neuron: KnownNeuron, requests: Requests, judge: Judge) -> Explanation:
    """The best of a neuron's candidates and revisions; a failed attempt if none is usable."""
    records = [neuron.exemplars()[place] for place in read_places(neuron)][: requests.explainer.n_records]
    explanations = [
        explanation
        for candidate in range(requests.n_candidates)
        for explanation in ask_explainer(
            requests, requests.request(UNIT, candidate), records, neuron.vocabulary
        )
    ]
    best = choose(neuron, explanations, judge)
    for candidate in requests.revisions if best.status == Status.OK else ():
        mistakes = find_mistakes(neuron, rule_of(best), judge)
        request = requests.request(UNIT, candidate)
        revision = ask_reviser(requests, request, records, neuron.vocabulary, best, mistakes)
        best = choose(neuron, [best, revision], judge)
    return best


def choose(neuron: KnownNeuron, explanations: Sequence[Explanation], judge: Judge) -> Explanation:
    """The candidate whose rule scores best on the records that were read; a failed one if none is usable."""
    usable = [e for e in explanations if e.status == Status.OK] or list(explanations[:1])
    if len(usable) == 1:
        return usable[0]
    return max(usable, key=lambda e: judge.score(neuron, read_places(neuron), rule_of(e)).all_tokens)


def rule_of(explanation: Explanation) -> str:
    """The text without its examples."""
    return explanation.text_of(explanation.ranking_part)


def is_copied(explanation: Explanation, requests: Requests) -> bool:
    """Whether it is a worked example's answer, or stands in the prompt's own words."""
    prompt = requests.prompt
    if prompt is None or not explanation.text:
        return False
    prompts = [prompt, prompt.narrower] if prompt.narrower else [prompt]
    turns = [turn for p in prompts for turn in p.fill({"records": "", "category": ""})]
    worked = [example.explanation for p in prompts for example in p.pool]
    instructions = " ".join(turn.content.casefold() for turn in turns)
    rule = rule_of(explanation)
    return is_copy(rule, worked) or rule.casefold() in instructions


def bare_list(neuron: KnownNeuron) -> str:
    """What the explainer `tokens` writes."""
    try:
        records = [neuron.exemplars()[place] for place in read_places(neuron)]
        return list_peak_tokens(records, neuron.vocabulary)
    except LlmReplyError:
        return ""


def evaluate(neurons: Sequence[KnownNeuron], requests: Requests, judge: Judge) -> list[Result]:
    """Explain all neurons, then score each hypothesis on its neuron and on five others."""
    console = Console(stderr=True)
    explained = track(neurons, "explaining", console=console)
    chosen = [explain(neuron, requests, judge) for neuron in explained]
    texts = [explanation.text or "" for explanation in chosen]
    rules = [rule_of(explanation) for explanation in chosen]
    step, n = max(1, len(neurons) // (N_OTHERS + 1)), len(neurons)
    results = []
    for i, neuron in enumerate(track(neurons, "judging", console=console)):
        places = judged_places(neuron)
        others = [rules[(i + k * step) % n] for k in range(1, N_OTHERS + 1)]
        results.append(
            Result(
                neuron=neuron,
                text=texts[i],
                reason=chosen[i].reason or "",
                rule=judge.score(neuron, places, rules[i]),
                hypothesis=judge.score(neuron, places, texts[i]),
                true=judge.score(neuron, places, neuron.explanations[0]),
                bare_list=judge.score(neuron, places, bare_list(neuron)),
                others=[judge.score(neuron, places, other).all_tokens for other in others],
                is_copy=is_copied(chosen[i], requests),
            )
        )
    return results


def evaluate_units(
    store: Store, run: Run, units: Sequence[UnitId], requests: Requests, scorer: OpenScorer
) -> dict[str, float | int | None]:
    """Explain units of a run as `explain` does, without storing anything, and score texts on `report`."""
    tasks, chosen = [], []
    for unit in track(units, "explaining", console=Console(stderr=True)):
        stored = load_unit(store, run, unit)
        tokens = load_tokens(store, run.id, tokens_needed(stored.exemplars))
        evidence = SideEvidence.of(run, stored, run.sides[0], tokens)
        task = ExplainTask(evidence, tokens, {}, {})
        results = explain_side(task, requests=requests, scorer=scorer, headline=headline_of(run, scorer))
        tasks.append(task)
        chosen.append(next(result.explanation for result in results if result.explanation.chosen))
    rules = [rule_of(explanation) for explanation in chosen]
    step, n = max(1, len(units) // (N_OTHERS + 1)), len(units)
    rows = []
    for i, task in enumerate(track(tasks, "judging", console=Console(stderr=True))):
        judge = UnitJudge(scorer, task)
        others = [judge.score(rules[(i + k * step) % n]) for k in range(1, N_OTHERS + 1)]
        try:
            listed = list_peak_tokens(
                task.evidence.explain_records(requests.explainer.n_records), task.tokens
            )
        except LlmReplyError:
            listed = ""
        own, whole = judge.score(rules[i]), judge.score(chosen[i].text or "")
        rows.append((own, whole, judge.score(listed), others[0], all(own > other for other in others)))
    rule, whole, listed, other, won = np.array(rows, float).T
    return {
        "mean_rule": round(rule.mean(), 3),
        "mean_rule_error": round(rule.std(ddof=1) / n**0.5, 3) if n > 1 else None,
        "mean_whole": round(whole.mean(), 3),
        "mean_bare_list": round(listed.mean(), 3),
        "other_rule": round(other.mean(), 3),
        "above_other": int((rule > other).sum()),
        "wins": int(won.sum()),
        "failed": sum(not explanation.text for explanation in chosen),
        "n": n,
    }


class UnitJudge:
    """Scores texts on one unit's `report` records."""

    def __init__(self, scorer: OpenScorer, task: ExplainTask) -> None:
        self._scorer, self._evidence = scorer, task.evidence
        self._trials = SideTrials(scorer, task.evidence, task.tokens)
        self._nobody = Provenance("none", None, "none", None, None)

    def score(self, text: str) -> float:
        """The headline of the text; 0 without a text or where it is undefined."""
        if not text:
            return 0.0
        unit = self._evidence.unit.id
        explanation = Explanation(unit, "human", Status.OK, text, self._nobody, side=self._evidence.side)
        begun = begin_prediction(explanation, "whole", self._scorer, self._evidence)
        prediction = self._trials.extend(begun, [text], ("report",))
        key = ("report", "correlation", self._evidence.headline_subset)
        for score in compute_scores(self._evidence, prediction):
            if (score.split, score.metric, score.subset) == key:
                return score.value or 0.0
        return 0.0


def share(parts: Sequence[float], wholes: Sequence[float]) -> tuple[float | None, float | None]:
    """The ratio of the means, and its standard error over neurons (delta method); None without a mean."""
    a, b = np.array(parts), np.array(wholes)
    if len(a) < 2 or b.mean() <= 0:
        return None, None
    ratio = a.mean() / b.mean()
    error = np.std(a - ratio * b, ddof=1) / (np.sqrt(len(a)) * b.mean())
    return round(float(ratio), 3), round(float(error), 3)


def summarize(results: Sequence[Result]) -> dict[str, float | int | None]:
    """The figures over all neurons."""
    true, true_beyond = [r.true.all_tokens for r in results], [r.true.beyond_words for r in results]
    rule, rule_error = share([r.rule.all_tokens for r in results], true)
    whole, whole_error = share([r.hypothesis.all_tokens for r in results], true)
    beyond, beyond_error = share([r.hypothesis.beyond_words for r in results], true_beyond)
    listed, _ = share([r.bare_list.beyond_words for r in results], true_beyond)
    return {
        "rule_share_of_true": rule,
        "rule_share_error": rule_error,
        "whole_share_of_true": whole,
        "whole_share_error": whole_error,
        "beyond_words": beyond,
        "beyond_words_error": beyond_error,
        "bare_list_beyond_words": listed,
        "wins": sum(r.won for r in results),
        "copies": sum(r.is_copy for r in results),
        "failed": sum(not r.text for r in results),
        "n": len(results),
        "mean_rule": round(fmean(r.rule.all_tokens for r in results), 3),
        "mean_true": round(fmean(true), 3),
        "mean_words": round(fmean(len(r.text.split()) for r in results), 1),
    }


def table_of(results: Sequence[Result]) -> Table:
    table = Table("neuron", "kind", "true", "rule", "whole", "won", "hypothesis", box=None)
    for r in results:
        figures = (r.true.all_tokens, r.rule.all_tokens, r.hypothesis.all_tokens)
        scores = (*(f"{figure:.2f}" for figure in figures), "won" if r.won else "")
        note = " (a copy)" if r.is_copy else ""
        table.add_row(r.neuron.name, r.neuron.kind, *scores, (r.text or f"failed: {r.reason}")[:80] + note)
    return table


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--neurons", type=Path, help="a file of known neurons")
    what.add_argument("--db", help="a database: real units of its latest run")
    parser.add_argument("--sample", type=int, default=30, help="units of the database (default: 30)")
    parser.add_argument(
        "--explainer", choices=sorted(EXPLAINERS.keys() - {"bank"}), default=ExplainConfig.explainer
    )
    parser.add_argument("--local", help="a model to explain in this process")
    parser.add_argument("--server", help="the URL of a vLLM server that explains")
    parser.add_argument("--model", help="which of the server's models")
    parser.add_argument("--api-key", help="of the server")
    parser.add_argument("--candidates", type=int, default=1, help="hypotheses of each neuron (default: 1)")
    parser.add_argument("--revise", type=int, default=0, help="revisions of the best one (default: 0)")
    parser.add_argument("--scorer", choices=SCORERS.names(), default="lexical", help="who judges (lexical)")
    parser.add_argument("--judge", help="the model that judges, in this process (default: the embedded one)")
    halves = ("all", *HALVES)
    parser.add_argument("--half", choices=halves, default="all", help="which neurons (default: all)")
    parser.add_argument("--kinds", help="kinds of neurons, separated by commas (default: all)")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    return parser.parse_args()


def run_options(options: argparse.Namespace, stack: ExitStack) -> tuple[dict[str, Any], list[Result]]:
    """The figures, and the results of known neurons; none of real units."""

    def open_model(config: EngineConfig) -> Engine:
        return open_engine(config, stack, lambda line: print(line, file=sys.stderr))

    config = ExplainConfig((UNIT,), options.explainer, candidates=options.candidates, revise=options.revise)
    own = EngineConfig(
        server=options.server, local=options.local, model=options.model, api_key=options.api_key
    )
    engine = open_model(own) if config.asks_llm else None
    judge = open_model(EngineConfig(local=options.judge or embedded_model()))
    requests, scorer = Requests.of(config, engine), SCORERS.load(options.scorer)
    began, results = time.perf_counter(), []
    if options.db:
        store = stack.enter_context(open_store(options.db, read_only=True))
        run = load_run(store)
        units = sample_units(store, run, list_unit_ids(store, run.id), options.sample)
        figures = evaluate_units(store, run, units, requests, scorer.open(judge, run))
    else:
        neurons = read_neurons(options.neurons, None, options.half)
        if options.kinds:
            neurons = [neuron for neuron in neurons if neuron.kind in options.kinds.split(",")]
        simulator = scorer.open(judge, SimpleNamespace(tokenizer_sha256=NO_TOKENIZER))
        results = evaluate(neurons, requests, Judge(simulator))
        figures = summarize(results)
    tokens = 0 if engine is None else engine.usage.prompt_tokens
    seconds = round(time.perf_counter() - began, 1)
    return {**figures, "prompt_tokens": tokens, "seconds": seconds}, results


def main() -> int:
    options = parse_arguments()
    try:
        with ExitStack() as stack:
            figures, results = run_options(options, stack)
    except (NeuroexplainError, OSError, json.JSONDecodeError, KeyError) as error:
        known = isinstance(error, NeuroexplainError)
        print(error if known else f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2
    if options.json:
        print(json.dumps(figures))
        return 0
    text = ", ".join(f"{name} {value}" for name, value in figures.items())
    Console().print(*([table_of(results), ""] if results else []), text, sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
