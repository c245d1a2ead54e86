"""A reply -> hypotheses (pure)."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from neuroexplain.errors import LlmReplyError
from neuroexplain.evidence import Exemplar, Status
from neuroexplain.scoring.named_words import WORD, stem_of

MOST_MEANINGS = 3
DECORATION = " \"'*`."
PREAMBLE = re.compile(
    r"^(?:(?:explanation|category|answer):"
    r"|the category (?:that )?(?:these |the )?words\b.*?\bbelongs? to is:?)\s*",
    re.IGNORECASE,
)
UNION = "; or "  # between hypotheses
LONGEST_REPLY = 400  # characters; a longer answer is rambling, not a hypothesis
LONGEST_CATEGORY = 12  # words
LEAST_REPEATED = 6  # words from which an answer that says most of them again is a loop, not a hypothesis
REFUSAL = re.compile(
    r"(?:sorry, |unfortunately, )?i"
    r"(?: (?:cannot|can't|can not|won't|will not|apologi[sz]e)"
    r"|(?:'m| am) (?:so )?(?:sorry|unable|not able))\b"
    r"|sorry, but\b|my apologies\b|as an ai\b"
)


# Answers of these words alone are too wide. Prepositions, articles and others of which there are few are not.
PARTS_OF_SPEECH = frozenset("noun verb adjective adverb pronoun name word phrase form".split())
BESIDE_PARTS_OF_SPEECH = frozenset("a an the and or proper common".split())


@dataclass(frozen=True)
class Hypothesis:
    """What an LLM says that a unit responds to."""

    text: str
    covers: tuple[int, ...] | None = (
        None  # ranks of the records that it covers; None if the explainer asks for none
    )


def parse_single(reply: str, records: Sequence[Exemplar]) -> list[Hypothesis]:
    """The hypothesis in a reply: its first line, tidied. Raises LlmReplyError (`parse_error`) without one."""
    answer = _without_reasoning(reply)
    return [Hypothesis(_tidy(answer.splitlines()[0] if answer else "", reply))]


def parse_category(reply: str, records: Sequence[Exemplar]) -> list[Hypothesis]:
    """The category in a reply: as parse_single, but a sentence about the words is none."""
    hypotheses = parse_single(reply, records)
    n_words = len(WORD.findall(hypotheses[0].text))
    if n_words > LONGEST_CATEGORY:
        reason = f"the answer has {n_words} words: a sentence, not a category of at most {LONGEST_CATEGORY}"
        raise LlmReplyError(Status.PARSE_ERROR, reason, reply)
    return hypotheses


def parse_meanings(reply: str, records: Sequence[Exemplar]) -> list[Hypothesis]:
    """Up to three hypotheses, a line each: `words | 1, 4, 5`, with the numbers of the covered excerpts.

    Raises LlmReplyError (`parse_error`) if no line has that form, or if one names an excerpt that was not
    shown.
    """
    hypotheses = []
    for line in _without_reasoning(reply).splitlines():
        words, bar, listed = line.partition("|")
        numbers = listed.split(",")
        words = re.sub(r"^\s*(?:[-*]|\d+[.)])", "", words, flags=re.ASCII).strip()
        if not bar or not words or not all(re.fullmatch(r"\s*\d{1,4}\s*", n, re.ASCII) for n in numbers):
            continue
        excerpts = sorted({int(number) for number in numbers})
        if not 1 <= excerpts[0] <= excerpts[-1] <= len(records):
            reason = f"an excerpt outside 1 to {len(records)} is named"
            raise LlmReplyError(Status.PARSE_ERROR, reason, reply)
        covered = (records[number - 1] for number in excerpts)
        ranks = tuple(record.rank for record in covered if record.kind != "sampled")
        hypotheses.append(Hypothesis(_tidy(words, reply), ranks))
    if not hypotheses:
        reason = "no line is of the form: words | numbers of excerpts"
        raise LlmReplyError(Status.PARSE_ERROR, reason, reply)
    return hypotheses[:MOST_MEANINGS]


def whole_text(rule: str, examples: Sequence[str]) -> str:
    """A rule with the words that are its examples: `Monday, Friday and other days of the week`."""
    return f"{', '.join(examples)} and other {rule}" if examples else rule


def union_text(hypotheses: Sequence[str]) -> str:
    """The text of a union of several hypotheses."""
    return UNION.join(hypotheses)


def _without_reasoning(reply: str) -> str:
    """The part of a reply after the last thought."""
    answer = re.split("</think>", reply, flags=re.IGNORECASE)[-1]
    if re.search("<think>", answer, flags=re.IGNORECASE):
        raise LlmReplyError(Status.PARSE_ERROR, "the answer is reasoning that was cut off", reply)
    return answer.strip()


def _tidy(line: str, reply: str) -> str:
    """The line without decoration. Raises LlmReplyError if it is empty, a refusal, a loop or too long."""
    text = PREAMBLE.sub("", line.strip().replace("**", "").strip(DECORATION)).strip(DECORATION)
    if not any(character.isalnum() for character in text):
        raise LlmReplyError(Status.PARSE_ERROR, "the answer is empty", reply)
    if REFUSAL.match(text.lower().replace("\u2019", "'")):
        raise LlmReplyError(Status.PARSE_ERROR, "the answer is a refusal", reply)
    words = WORD.findall(text.casefold())
    if len(words) >= LEAST_REPEATED and 2 * len(set(words)) < len(words):
        raise LlmReplyError(Status.PARSE_ERROR, "the answer repeats itself", reply)
    if len(text) > LONGEST_REPLY:
        reason = f"the answer has {len(text)} characters, more than {LONGEST_REPLY}"
        raise LlmReplyError(Status.PARSE_ERROR, reason, reply)
    return text


def is_part_of_speech(text: str) -> bool:
    """Whether a hypothesis says nothing but a part of speech, like "verbs": most such words are not meant."""
    words = [word.lower().removesuffix("s") for word in WORD.findall(text)]
    return set(words) <= PARTS_OF_SPEECH | BESIDE_PARTS_OF_SPEECH and not PARTS_OF_SPEECH.isdisjoint(words)


def is_copy(text: str, answers: Collection[str]) -> bool:
    """Whether a hypothesis is one of these answers: the same words but articles, in any order."""
    words = _stems(text)
    return any(words == _stems(answer) for answer in answers)


def _stems(text: str) -> list[str]:
    return sorted(stem_of(word) for word in WORD.findall(text) if word.lower() not in ("a", "an", "the"))
