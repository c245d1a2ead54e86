"""Records -> the text that an explainer's prompt shows (pure)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from neuroexplain.errors import LlmReplyError
from neuroexplain.evidence import Exemplar, Status, Tokens, texts_in_context
from neuroexplain.llm.prompts import WorkedExample, displayed, level_lines, marked
from neuroexplain.scoring.levels import to_levels
from neuroexplain.scoring.named_words import words_of_tokens

BEFORE_PEAK, AFTER_PEAK = 12, 6  # tokens of a record in `excerpts`: more before the peak than after
FIRES_FROM = 4  # level from which a token is marked and a word listed: lower ones are noise on most neurons
MOST_WORDS = 12  # that `category` lists: more make a small model repeat them
LEAST_MEAN = 0.25  # of its greatest level: words that are often silent say little of the unit


def render_pairs(records: Sequence[Exemplar], tokens: Tokens) -> str:
    """Every token with its level, scaled by the strongest of these records (Bills et al. 2023)."""
    maximum = max(float(record.activations.max()) for record in records)
    excerpts = []
    for record in records:
        levels = to_levels(record.activations, maximum).tolist()
        excerpts.append(level_lines(zip(_token_texts(record, tokens), levels, strict=True)))
    return numbered(excerpts)


def render_excerpts(records: Sequence[Exemplar], tokens: Tokens) -> str:
    """One line a record: the text around its peak, with the firing tokens between **."""
    maximum = max(float(record.activations.max()) for record in records)
    return "\n".join(_marked_text(record, maximum, tokens) for record in records)


def render_numbered_excerpts(records: Sequence[Exemplar], tokens: Tokens) -> str:
    """As render_excerpts, each line with its number."""
    return numbered_lines(render_excerpts(records, tokens).split("\n"))


def _marked_text(record: Exemplar, maximum: float, tokens: Tokens) -> str:
    """The record's excerpt on one line; stretches of firing tokens stand between **, spaces outside."""
    levels = to_levels(record.activations, maximum)
    texts = _token_texts(record, tokens)
    peak = record.peak_index
    places = range(max(0, peak - BEFORE_PEAK), min(len(texts), peak + AFTER_PEAK + 1))
    fires = [bool(levels[place] >= FIRES_FROM or place == peak) for place in places]
    return marked([texts[place] for place in places], fires)


@dataclass(frozen=True)
class Mistake:
    """A crop whose levels were predicted badly."""

    record: Exemplar
    first: int  # the crop's first token in the record
    true: Sequence[int]  # levels 0..10
    predicted: Sequence[int]  # levels 0..10


def render_mistakes(mistakes: Sequence[Mistake], tokens: Tokens) -> str:
    """Crops with true and predicted levels: one line a token, `text<tab>true<tab>predicted`."""
    excerpts = []
    for mistake in mistakes:
        texts = _token_texts(mistake.record, tokens)[mistake.first : mistake.first + len(mistake.true)]
        rows = zip(texts, mistake.true, mistake.predicted, strict=True)
        excerpts.append("\n".join(f"{displayed(text)}\t{true}\t{guess}" for text, true, guess in rows))
    return numbered(excerpts)


def list_peak_tokens(records: Sequence[Exemplar], tokens: Tokens) -> str:
    """The tokens that the records peak on, most frequent first: the baseline that an LLM must beat."""
    peaks = [displayed(_peak_text(record, tokens)).strip() for record in records]
    counts = Counter(peak for peak in peaks if peak)
    if not counts:
        raise LlmReplyError(Status.PARSE_ERROR, "the unit peaks on white space only")
    return ", ".join(token for token, _ in counts.most_common())


def list_firing_words(records: Sequence[Exemplar], tokens: Tokens) -> str:
    """The words that fire, separated by commas. Raises LlmReplyError (`parse_error`) if there is none."""
    words = firing_words(records, tokens)
    if not words:
        raise LlmReplyError(Status.PARSE_ERROR, "the unit fires on no word")
    return ", ".join(words)


def firing_words(records: Sequence[Exemplar], tokens: Tokens) -> list[str]:
    """The words that fire, the strongest first, then the most frequent; capitals only where all are.

    At most MOST_WORDS. Left out are words that fire at some places and are silent at most others, and
    punctuation beside words.
    """
    maximum = max(float(record.activations.max()) for record in records)
    levels_of: dict[str, list[int]] = {}
    for record in records:
        levels = to_levels(record.activations, maximum).tolist()
        for word, level in _words_with_levels(_token_texts(record, tokens), levels):
            levels_of.setdefault(word if word.isupper() else word.lower(), []).append(level)
    firing = [
        (-max(levels), -len(levels), word)
        for word, levels in levels_of.items()
        if max(levels) >= FIRES_FROM and sum(levels) >= LEAST_MEAN * max(levels) * len(levels)
    ]
    words = [word for *_, word in sorted(firing)]
    letters = [word for word in words if word[0].isalnum()]
    return [displayed(word) for word in (letters if len(letters) > 1 else words)[:MOST_WORDS]]


def _words_with_levels(texts: Sequence[str], levels: Sequence[int]) -> list[tuple[str, int]]:
    """The words of a record in order, each with the greatest level of its tokens."""
    words: list[tuple[str, int]] = []
    last = ""
    for text, word, level in zip(texts, words_of_tokens(texts), levels, strict=True):
        if word and word == last and not text[:1].isspace():  # a further token of the same word
            words[-1] = (word, max(words[-1][1], level))
        elif word:
            words.append((word, level))
        last = word
    return words


def _token_texts(record: Exemplar, tokens: Tokens) -> list[str]:
    """The text of each token, [64]: see texts_in_context."""
    return texts_in_context([tokens[int(token_id)] for token_id in record.token_ids])


def _peak_text(record: Exemplar, tokens: Tokens) -> str:
    """The peak token's text. If it is a later part of a character, the text of the token with that
    character.
    """
    texts = _token_texts(record, tokens)
    return next((text for text in texts[record.peak_index :: -1] if text), "")


def numbered(excerpts: Iterable[str]) -> str:
    """The excerpts, each under its number."""
    return "\n\n".join(f"Excerpt {number}:\n{excerpt}" for number, excerpt in enumerate(excerpts, 1))


def numbered_lines(lines: Iterable[str]) -> str:
    """The lines, each after its number."""
    return "\n".join(f"{number}. {line}" for number, line in enumerate(lines, 1))


def worked_categories(examples: Sequence[WorkedExample]) -> list[tuple[str, str]]:
    """The words of each worked category, and its name."""
    return [(example.words, example.explanation) for example in examples]


def worked_pairs(examples: Sequence[WorkedExample]) -> list[tuple[str, str]]:
    """Each worked neuron as render_pairs shows one, and its explanation."""
    return [(numbered(map(level_lines, example.records)), example.explanation) for example in examples]


def worked_excerpts(examples: Sequence[WorkedExample]) -> list[tuple[str, str]]:
    """Each worked neuron as render_excerpts shows one, and its explanation."""
    return [("\n".join(_worked_lines(example)), example.explanation) for example in examples]


def worked_meanings(examples: Sequence[WorkedExample]) -> list[tuple[str, str]]:
    """Worked neurons with their meanings: the first two examples as one neuron, then the others.

    The excerpts of several meanings stand in turn.
    """
    neurons = [examples[:2], *([example] for example in examples[2:])] if examples else []
    rows = []
    for meanings in neurons:
        lines_of = [_worked_lines(example) for example in meanings]
        lines = [line for in_turn in zip(*lines_of, strict=True) for line in in_turn]
        answers = (
            f"{example.explanation} | {', '.join(map(str, range(place, len(lines) + 1, len(meanings))))}"
            for place, example in enumerate(meanings, 1)
        )
        rows.append((numbered_lines(lines), "\n".join(answers)))
    return rows


def _worked_lines(example: WorkedExample) -> list[str]:
    """The excerpts of a worked neuron, with the firing tokens between **."""
    return [
        marked([text for text, _ in record], [level >= FIRES_FROM for _, level in record])
        for record in example.records
    ]
