"""Statuses in words, for all that people read (pure). JSON, `--where` and databases keep the names."""

from __future__ import annotations

from collections.abc import Mapping

from neuroexplain.evidence import Status

# Each status of a single attempt, then of one and of several attempts after their number.
WORDS: Mapping[str, tuple[str, str, str]] = {
    Status.OK: ("ok", "ok", "ok"),
    Status.DEAD: ("never fires", "never fires", "never fire"),
    Status.NO_RECORDS: ("no records to read", "without records to read", "without records to read"),
    Status.NOT_CHOSEN: ("not chosen", "not chosen", "not chosen"),
    Status.CONTEXT_TOO_LONG: (
        "prompt too long for the model",
        "prompt was too long for the model",
        "prompts were too long for the model",
    ),
    Status.LLM_ERROR: ("request failed", "request failed", "requests failed"),
    Status.PARSE_ERROR: (
        "answer could not be read",
        "answer could not be read",
        "answers could not be read",
    ),
    Status.CONSTANT_ACTIVATIONS: (
        "the same activation everywhere",
        "with the same activation everywhere",
        "with the same activation everywhere",
    ),
    Status.CONSTANT_SIMULATION: (
        "the same prediction everywhere",
        "with the same prediction everywhere",
        "with the same prediction everywhere",
    ),
    Status.LOW_DIGIT_MASS: (
        "too few tokens with a prediction",
        "with a prediction for too few tokens",
        "with a prediction for too few tokens",
    ),
    Status.FEW_RECORDS: ("too few records", "with too few records", "with too few records"),
    Status.LITTLE_VARIATION: (
        "too little variation",
        "with too little variation",
        "with too little variation",
    ),
}


def status_words(status: str) -> str:
    """A status as people read it: `answer could not be read`. A name that is not known, with spaces."""
    return WORDS[status][0] if status in WORDS else status.replace("_", " ")


def status_count(status: str, n: int) -> str:
    """So many attempts with a status: `1 answer could not be read`."""
    words = WORDS[status][1 if n == 1 else 2] if status in WORDS else status.replace("_", " ")
    return f"{n:,} {words}"


def status_counts(counts: Mapping[str, int]) -> str:
    """Several such counts, in their order: `2 answers could not be read, 1 request failed`."""
    return ", ".join(status_count(status, n) for status, n in counts.items() if n)
