"""Objects -> short, safe text and numbers to draw (pure), for the terminal, the viewer and exports."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from neuroexplain.evidence import (
    INTRUDER,
    SUBSETS,
    Exemplar,
    Explanation,
    Headline,
    Score,
    Status,
    StoredScore,
    Unit,
)
from neuroexplain.histogram import bin_middle
from neuroexplain.runs import QueryRow, Run, Session, SimulatorCheck, UnitPage
from neuroexplain.score_words import SCORE_NAMES, VERDICTS, intruder_verdict
from neuroexplain.status_words import status_count, status_counts, status_words

if TYPE_CHECKING:
    from neuroexplain.store.score_summaries import ScoreSummary

SUMMED = (  # fields of Session that add up
    *("seconds", "n_neurons", "n_failed", "prompt_tokens", "completion_tokens"),
    *("scorer_prompt_tokens", "scored_tokens"),
)
ACTIVATION_WORDS = {
    "act": "the output of the activation function",
    "post": "what enters the down-projection",
}
# How a GGUF file's name ends: -Q4_K_M, .IQ2_XS, -bf16. MXFP4 and TQ1_0 are quantizations too.
_QUANTIZATION = re.compile(r"[-._](?:I?Q\d\w*|TQ\d\w*|MXFP\d\w*|B?F16|F32)$", re.IGNORECASE)
LONGEST_REPLY = 200  # characters of an answer that could not be used
_SYMBOLS = {"\n": "↵", "\r": "␍", "\t": "→", "\0": "␀"}
# Unicode categories of controls, of bidirectional and zero-width marks, of surrogates, private characters and
# separators of lines and paragraphs.
_HIDDEN = {"Cc", "Cf", "Cs", "Co", "Zl", "Zp"}


def printable(text: str) -> str:
    """The text on one line, without any character that a terminal obeys or hides.

    Line breaks, tabs and NUL become symbols, other such characters <U+XXXX>.
    """
    if text.isprintable():  # no character is of those categories
        return text
    return "".join(_printable_character(character) for character in text)


def beginning(text: str) -> str:
    """The beginning of an answer, on one line and safe to print: enough to see what went wrong."""
    return printable(text[:LONGEST_REPLY]) + ("…" if len(text) > LONGEST_REPLY else "")


def _printable_character(character: str) -> str:
    if character in _SYMBOLS:
        return _SYMBOLS[character]
    is_hidden = unicodedata.category(character) in _HIDDEN
    return f"<U+{ord(character):04X}>" if is_hidden else character


def strength(value: float, strongest: float) -> float:
    """How strongly a token is coloured, 0..1: `0.05 + 0.95 * log10(1 + 9 r)` with r = |value| / strongest.

    r is at most 1. It is 0 for a value of 0, and if the strongest value is not above 0.
    """
    if strongest <= 0 or not value:
        return 0.0
    return 0.05 + 0.95 * math.log10(1 + 9 * min(1.0, abs(value) / strongest))


def score_order(run: Run, stored: StoredScore) -> tuple[object, ...]:
    """A sort key of a unit's scores.

    The headline comes first. The others follow by split (`report` first) and scorer: those of SCORE_NAMES in
    their order, then by metric (the headline's first) and subset.
    """
    subsets = [subset for side in SUBSETS.values() for subset in side]
    headline, score = run.headline, stored.score
    names, key = list(SCORE_NAMES), (score.metric, score.subset)
    return (
        not headline.is_of(score),
        score.split != "report",
        stored.scorer,
        stored.scorer_model,
        names.index(key) if key in names else len(names),
        score.metric != headline.metric,
        score.metric,
        subsets.index(score.subset) if score.subset in subsets else len(subsets),
        score.subset,
    )


def score_name(score: Score) -> str:
    """A score's name for people: `population score`, or metric and subset of one that has no name."""
    key = score.metric, score.subset
    plain = f"{score.metric}, {score.subset}".replace("_", " ")
    name = SCORE_NAMES[key][0] if key in SCORE_NAMES else plain
    if key == INTRUDER and score.value is not None:
        verdict = intruder_verdict(score.ci_low, score.ci_high)
        return f"{name} ({VERDICTS[verdict]})" if verdict else name
    return name


def headline_name(headline: Headline) -> str:
    """The name of a run's headline, or of another score that it is sorted by, as above."""
    names = {SCORE_NAMES.get((headline.metric, subset), ("",))[0] for subset in headline.subsets}
    return names.pop() if len(names) == 1 and "" not in names else str(headline).replace("_", " ")


@dataclass(frozen=True, slots=True)
class RecordGroup:
    """Records with peaks of similar strength."""

    name: str  # which part of the records, by the strength of their peaks
    records: tuple[Exemplar, ...]  # the strongest peak first

    @property
    def low(self) -> float:
        """The activation at the weakest peak."""
        return self.records[-1].activation

    @property
    def high(self) -> float:
        return self.records[0].activation

    @property
    def title(self) -> str:
        low, high = f"{self.low:.3g}", f"{self.high:.3g}"
        return f"{self.name}: " + (f"peaks of {low} to {high}" if low != high else f"peak of {low}")


GROUPS = (  # names of groups, and the share of the records with peaks above each group's end
    ("strongest tenth", 0.1),
    ("rest of top quarter", 0.25),
    ("second quarter", 0.5),
    ("third quarter", 0.75),
    ("lowest quarter", 1.0),
)


def group_by_strength(records: Sequence[Exemplar]) -> list[RecordGroup]:
    """Records of one side by quantile of their peak's activation, the strongest first. No group is empty.

    Records with equal peaks are in one group, so that the ranges of two groups have nothing in common.
    """
    ordered = sorted(records, key=lambda x: x.activation if x.side == "negative" else -x.activation)
    peaks = [record.activation for record in ordered]
    ends = [_after_equals(peaks, math.ceil(share * len(peaks))) for _, share in GROUPS]
    parts = [tuple(ordered[first:end]) for first, end in zip([0, *ends], ends, strict=False)]
    return [RecordGroup(name, part) for (name, _), part in zip(GROUPS, parts, strict=True) if part]


def _after_equals(values: Sequence[float], end: int) -> int:
    """The first place from `end` on where a value differs from the one before."""
    while 0 < end < len(values) and values[end] == values[end - 1]:
        end += 1
    return end


def stands_for(probability: float) -> str:
    """How many segments of the corpus a record stands for that was drawn with this probability."""
    n = 1 / probability
    if n < 1.05:
        return "stands for itself"
    return f"stands for {n:.1f} segments" if n < 9.95 else f"stands for {n:,.0f} segments"


def session_text(session: Session) -> str:
    """A sentence on what a command that explained or scored did and cost."""
    minutes = session.seconds / 60
    text = f"{session.n_neurons:,} units in {minutes:.1f} minutes"
    if minutes > 0:
        text += f", {session.n_neurons / minutes:,.1f} a minute"
    cached = "" if session.cached_tokens is None else f" ({session.cached_tokens:,} of them cached)"
    text += f"; {session.prompt_tokens:,} prompt{cached} and {session.completion_tokens:,} completion tokens"
    if session.scored_tokens and session.scorer_prompt_tokens >= 0.05 * session.scored_tokens:
        text += f", {session.scorer_prompt_tokens / session.scored_tokens:.1f} prompt tokens per scored token"
    return text + (f"; {session.n_failed:,} failed" if session.n_failed else "") + "."


def check_text(check: SimulatorCheck) -> str:
    """How well a simulator did on known neurons, in a few words."""
    return (
        f"wins {check.n_won} of {check.n_neurons} known neurons (guessing wins {check.n_by_chance:.0f}), "
        f"margin {number(check.mean_margin)}"
    )


def join_sessions(sessions: Iterable[Session]) -> list[Session]:
    """The sums of sessions with the same explainer, scorer and models, in the order of their first sessions.

    A sum has the first session's start. Its cached tokens are those of the sessions that know them.
    """
    sums: dict[tuple[str | None, ...], Session] = {}
    for session in sessions:
        key = (session.explainer, session.model, session.scorer, session.scorer_model)
        sums[key] = _add_sessions(sums[key], session) if key in sums else session
    return list(sums.values())


def _add_sessions(a: Session, b: Session) -> Session:
    fields = {name: getattr(a, name) + getattr(b, name) for name in SUMMED}
    cached = [n for n in (a.cached_tokens, b.cached_tokens) if n is not None]
    return replace(a, **fields, cached_tokens=sum(cached) if cached else None)


def activation_histogram(unit: Unit, bins: int = 40) -> tuple[list[int], list[float], str]:
    """Number of tokens in each bin of activations, the bins' middles, and of what they are.

    Of sparse units all activations above 0, in the bins from the first to the last that has some; of others
    those of the random records. Both lists are empty if there is nothing to count.
    """
    counts = unit.histogram or ()
    used = [place for place, count in enumerate(counts) if count]
    if not used:
        return *random_histogram(unit.exemplars, bins), "random records"
    places = range(used[0], used[-1] + 1)
    return [counts[n] for n in places], [bin_middle(n) for n in places], "all activations above 0"


def health_text(figures: Mapping[str, float | None]) -> str:
    """How well a dictionary fits, as it was measured when collecting began."""
    published = figures.get("published_l0")
    explained = figures.get("variance_explained")
    beside = "" if published is None else f" (published: {published:g})"
    share = "no" if explained is None else f"{explained:.2f} of the"
    return (
        f"{figures['l0'] or 0:.1f} latents are active at a token{beside}, "
        f"{figures['silent_share'] or 0:.0%} at none of {int(figures['n_tokens'] or 0):,} tokens; "
        f"{share} variance is explained"
    )


def dictionary_text(run: Run, layer: int) -> str | None:
    """The name of a layer's dictionary and how well it fits, safe to print; None of units without one."""
    source = run.source(layer)
    if source is None or source.dictionary is None:
        return None
    figures = run.health.get(str(layer))
    return printable(source.dictionary) + ("" if figures is None else f": {health_text(figures)}")


def dictionary_lines(run: Run) -> list[str]:
    """The dictionary of each layer; nothing of units without one."""
    texts = ((layer, dictionary_text(run, layer)) for layer in run.layers)
    return [f"layer {layer}, {text}." for layer, text in texts if text is not None]


def density(share: float) -> str:
    """A share of tokens with two digits that tell, however small: `12%`, `0.0031%`."""
    return f"{share:.1%}" if share >= 0.001 or share == 0 else f"{share * 100:.2g}%"


def random_histogram(exemplars: Sequence[Exemplar], bins: int = 40) -> tuple[list[int], list[float]]:
    """Number of tokens of the random records in each bin of activations, and the bins' middles.

    Both are empty if there are no random records.
    """
    import numpy as np

    values = [x.activations for x in exemplars if x.kind == "random"]
    if not values:
        return [], []
    counts, edges = np.histogram(np.concatenate(values), bins=bins)
    return counts.tolist(), ((edges[:-1] + edges[1:]) / 2).tolist()


def corpus_name(run: Run) -> str:
    """The run's data sets or files, the first three; absolute paths by their last part."""
    dataset = run.config.get("dataset") or run.config.get("folder") or ""
    names = [dataset] if isinstance(dataset, str) else [str(name) for name in dataset]
    return ", ".join(Path(name).name if name.startswith("/") else name for name in names[:3])


def activation_words(run: Run) -> str:
    """Where a run reads its units, in words: `output of the activation function`, or the kind of unit."""
    return ACTIVATION_WORDS.get(run.activation, run.activation) if run.kind == "mlp" else run.activation


def rule_note(run: Run) -> str | None:
    """What a person should know of a run of an earlier version before its scores are read; None otherwise."""
    if run.split_rule == "passages":
        return None
    return (
        f"Run {run.id} is of an earlier version and goes on by its rule: records are split by rank, and its "
        f"score is {' or '.join(run.headline.subsets)}. For scores of the whole corpus, collect again."
    )


def short_name(model: str) -> str:
    """A model's name; of a file or folder its own name, of a GGUF file without ending and quantization.

    `SmolLM2-135M-Instruct-Q8_0.gguf` is `SmolLM2-135M-Instruct`.
    """
    if model.endswith(".gguf"):
        return _QUANTIZATION.sub("", model.rsplit("/", 1)[-1].removesuffix(".gguf")) or model
    return model.rstrip("/").rsplit("/", 1)[-1] or model if model.startswith("/") else model


def rule_comparison(page: UnitPage, explanation: Explanation) -> str | None:
    """The headline of the rule alone, and what the examples add: `rule alone 0.41, examples add +0.10`.

    By the scorer whose headline comes first. None if the rule has no such score.
    """
    of_whole, of_rule = (
        sorted(
            (s for s in scores if s.explanation_id == explanation.id and page.run.headline.is_of(s.score)),
            key=lambda stored: score_order(page.run, stored),
        )
        for scores in (page.scores, page.rule_scores)
    )
    if not of_rule:
        return None
    rule = of_rule[0]
    by = rule.scorer, rule.scorer_model
    whole = next((s.score.value for s in of_whole if (s.scorer, s.scorer_model) == by), None)
    if rule.score.value is None:
        return f"rule alone: {status_words(rule.score.status)}"
    if whole is None:
        return f"rule alone {number(rule.score.value)}"
    return f"rule alone {number(rule.score.value)}, examples add {whole - rule.score.value:+.2f}"


def rule_first(text: str, rule: str | None, examples: Sequence[str] | None) -> str:
    """An explanation on one line, safe to print: its rule, then its examples in brackets."""
    return printable(text if rule is None else f"{rule} ({', '.join(examples or ())})")


def explained_by(explainer: str, model: str) -> str:
    """An explainer and its model, safe to print; once if both have one name, as with `tokens` and `human`."""
    return printable(explainer if explainer == model else f"{explainer}, {short_name(model)}")


def units_text(counts: Mapping[str, int], noun: str) -> str:
    """How many units there are, by status: `46,080 neurons, of which 14 never fire`."""
    rest = {status: n for status, n in counts.items() if status != Status.OK}
    return f"{sum(counts.values()):,} {noun}" + (f", of which {status_counts(rest)}" if rest else "")


def explanations_text(counts: Iterable[tuple[str, str, str, int]]) -> list[str]:
    """What is there by each explainer and model: `28 explanations by pairs, M; 2 answers could not be read`.

    counts: (explainer, model, status, number of explanations), in the order of explainers and models.
    """
    lines = []
    for by, of_model in groupby(counts, key=lambda count: count[:2]):
        by_status = {status: n for *_, status, n in of_model}
        n = by_status.pop(Status.OK, 0)
        line = f"{n:,} explanation{'' if n == 1 else 's'} by {explained_by(*by)}"
        lines.append(printable(line + (f"; {status_counts(by_status)}" if by_status else "")))
    return lines


def undefined_text(summary: ScoreSummary) -> str:
    """How many scores have no value, and their most frequent reasons: `12: 9 with too few records, ...`."""
    if not summary.n_undefined:
        return "0"
    reasons = [status_count(status, n) for status, n in list(summary.undefined.items())[:3]]
    rest = ", ..." if len(summary.undefined) > len(reasons) else ""
    return f"{summary.n_undefined:,}: {', '.join(reasons)}{rest}"


def intruder_text(row: QueryRow) -> str:
    """How often a judge finds the odd one, and whether it may have guessed; empty if none was asked."""
    if row.intruder is None:
        return ""
    verdict = intruder_verdict(row.intruder_low, row.intruder_high)
    return f"{number(row.intruder)}, {verdict}" if verdict else number(row.intruder)


def number(value: float | None) -> str:
    """Two decimals, never -0.00; a dash for None."""
    return "-" if value is None else f"{round(value, 2) + 0.0:.2f}"


def signed(value: float | None) -> str:
    """Two decimals with a sign, `+0.00` for none; a dash for None."""
    return "-" if value is None else f"{round(value, 2) + 0.0:+.2f}"


def percent(share: float | None) -> str:
    """A whole percentage; a dash for None."""
    return "-" if share is None else f"{share:.0%}"


def interval(low: float | None, high: float | None) -> str:
    """`0.10 to 0.25`; empty if a bound is missing."""
    return "" if low is None or high is None else f"{number(low)} to {number(high)}"
