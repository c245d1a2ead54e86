"""Objects -> short, safe text and numbers to draw (pure), for the terminal, the viewer and exports."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from neuroexplain.evidence import SUBSETS, Exemplar, StoredScore
from neuroexplain.runs import Run, Session

SUMMED = (  # fields of Session that add up
    *("seconds", "n_neurons", "n_failed", "prompt_tokens", "completion_tokens"),
    *("scorer_prompt_tokens", "scored_tokens"),
)
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

    The headline comes first. The others follow by split (`report` first), scorer, metric (the headline's
    first) and subset.
    """
    subsets = [subset for side in SUBSETS.values() for subset in side]
    headline, score = run.headline, stored.score
    return (
        not headline.is_of(score),
        score.split != "report",
        stored.scorer,
        stored.scorer_model,
        score.metric != headline.metric,
        score.metric,
        subsets.index(score.subset) if score.subset in subsets else len(subsets),
        score.subset,
    )


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


def short_name(model: str) -> str:
    """A model's name; of a GGUF file the file's name alone."""
    return model.rsplit("/", 1)[-1].removesuffix(".gguf") if model.endswith(".gguf") else model


def explained_by(explainer: str, model: str) -> str:
    """An explainer and its model, safe to print; once if both have one name, as with `tokens` and `human`."""
    return printable(explainer if explainer == model else f"{explainer}, {short_name(model)}")


def number(value: float | None) -> str:
    """Two decimals, never -0.00; a dash for None."""
    return "-" if value is None else f"{round(value, 2) + 0.0:.2f}"


def interval(low: float | None, high: float | None) -> str:
    """`0.10 to 0.25`; empty if a bound is missing."""
    return "" if low is None or high is None else f"{number(low)} to {number(high)}"
