"""Records -> messages, and a reply -> hypotheses (pure). EXPLAINERS lists all explainers."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from neuroexplain.errors import LlmReplyError
from neuroexplain.evidence import Exemplar, Status, Tokens, texts_in_context
from neuroexplain.llm.engine import Message
from neuroexplain.llm.prompts import Prompt, displayed, level_lines, load_prompt
from neuroexplain.scoring.levels import to_levels

BEFORE_PEAK, AFTER_PEAK = 12, 6  # tokens of a record in `excerpts`: more before the peak than after
MARKED_FROM = 4  # level from which `excerpts` marks a token: lower ones are noise on most neurons
MOST_MEANINGS = 3
LONGEST_REPLY = 400  # characters; a longer answer is rambling, not a hypothesis
REFUSAL = re.compile(
    r"(?:sorry, |unfortunately, )?i"
    r"(?: (?:cannot|can't|can not|won't|will not|apologi[sz]e)"
    r"|(?:'m| am) (?:so )?(?:sorry|unable|not able))\b"
    r"|sorry, but\b|my apologies\b|as an ai\b"
)


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


def union_text(hypotheses: Sequence[str]) -> str:
    """The text of a union of several hypotheses."""
    return "; or ".join(hypotheses)


def _without_reasoning(reply: str) -> str:
    """The part of a reply after the last thought."""
    answer = re.split("</think>", reply, flags=re.IGNORECASE)[-1]
    if re.search("<think>", answer, flags=re.IGNORECASE):
        raise LlmReplyError(Status.PARSE_ERROR, "the answer is reasoning that was cut off", reply)
    return answer.strip()


def _tidy(line: str, reply: str) -> str:
    """The line without decoration. Raises LlmReplyError if it is empty, a refusal or too long."""
    text = line.strip().replace("**", "").strip(" \"'*`.").removeprefix("Explanation:").strip()
    if not any(character.isalnum() for character in text):
        raise LlmReplyError(Status.PARSE_ERROR, "the answer is empty", reply)
    if REFUSAL.match(text.lower().replace("\u2019", "'")):
        raise LlmReplyError(Status.PARSE_ERROR, "the answer is a refusal", reply)
    if len(text) > LONGEST_REPLY:
        reason = f"the answer has {len(text)} characters, more than {LONGEST_REPLY}"
        raise LlmReplyError(Status.PARSE_ERROR, reason, reply)
    return text


def render_pairs(records: Sequence[Exemplar], tokens: Tokens) -> str:
    """Every token with its level, scaled by the strongest of these records (Bills et al. 2023)."""
    maximum = max(float(record.activations.max()) for record in records)
    excerpts = []
    for record in records:
        levels = to_levels(record.activations, maximum).tolist()
        excerpts.append(level_lines(zip(_token_texts(record, tokens), levels, strict=True)))
    return _numbered(excerpts)


def render_excerpts(records: Sequence[Exemplar], tokens: Tokens) -> str:
    """One line a record: the text around its peak, with the firing tokens between **."""
    maximum = max(float(record.activations.max()) for record in records)
    return "\n".join(_marked_text(record, maximum, tokens) for record in records)


def render_numbered_excerpts(records: Sequence[Exemplar], tokens: Tokens) -> str:
    """As render_excerpts, each line with its number."""
    lines = render_excerpts(records, tokens).split("\n")
    return "\n".join(f"{number}. {line}" for number, line in enumerate(lines, 1))


def _marked_text(record: Exemplar, maximum: float, tokens: Tokens) -> str:
    """The record's excerpt on one line; stretches of firing tokens stand between **, spaces outside."""
    levels = to_levels(record.activations, maximum)
    texts = _token_texts(record, tokens)
    line, is_marked = "", False
    peak = record.peak_index
    for place in range(max(0, peak - BEFORE_PEAK), min(len(texts), peak + AFTER_PEAK + 1)):
        text = displayed(texts[place]).replace("**", "* *")
        fires = bool(levels[place] >= MARKED_FROM or place == peak)
        if fires and not is_marked:
            space = text[: len(text) - len(text.lstrip())]
            text = f"{space}**{text.lstrip()}"
        elif is_marked and not fires:
            text = f"**{text}"
        line, is_marked = line + text, fires
    return (line + ("**" if is_marked else "")).strip()


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
    return _numbered(excerpts)


def list_peak_tokens(records: Sequence[Exemplar], tokens: Tokens) -> str:
    """The tokens that the records peak on, most frequent first: the baseline that an LLM must beat."""
    peaks = [displayed(_peak_text(record, tokens)).strip() for record in records]
    counts = Counter(peak for peak in peaks if peak)
    if not counts:
        raise LlmReplyError(Status.PARSE_ERROR, "the neuron peaks on white space only")
    return ", ".join(token for token, _ in counts.most_common())


def _token_texts(record: Exemplar, tokens: Tokens) -> list[str]:
    """The text of each token, [64]: see texts_in_context."""
    return texts_in_context([tokens[int(token_id)] for token_id in record.token_ids])


def _peak_text(record: Exemplar, tokens: Tokens) -> str:
    """The peak token's text. If it is a later part of a character, the text of the token with that
    character.
    """
    texts = _token_texts(record, tokens)
    return next((text for text in texts[record.peak_index :: -1] if text), "")


def _numbered(excerpts: Iterable[str]) -> str:
    return "\n\n".join(f"Excerpt {number}:\n{excerpt}" for number, excerpt in enumerate(excerpts, 1))


@dataclass(frozen=True)
class Explainer:
    """A way to write a hypothesis from a unit's `explain` records."""

    name: str
    n_records: int  # strongest records to show
    prompt: str | None  # file in prompts/; None if no LLM is asked
    render: Callable[
        [Sequence[Exemplar], Tokens], str
    ]  # records -> the prompt's blank; without an LLM, the explanation
    max_tokens: int = 40  # of a reply
    parse: Callable[[str, Sequence[Exemplar]], list[Hypothesis]] = parse_single
    gives_several: bool = False  # whether one reply may hold several hypotheses
    example_reply: str = (
        "words and phrases that have to do with travelling by sea, the # of them"  # for a dry run
    )

    @property
    def can_revise(self) -> bool:
        """Whether its reply can be given back with its mistakes: it is one hypothesis of an LLM."""
        return self.prompt is not None and not self.gives_several

    def load_prompt(self) -> Prompt | None:
        """Its prompt file; None if no LLM is asked."""
        return None if self.prompt is None else load_prompt(self.prompt)

    def messages(self, prompt: Prompt, records: Sequence[Exemplar], tokens: Tokens) -> list[Message]:
        """The prompt's turns, with its worked examples before the last one as questions and answers."""
        *instructions, question = prompt.fill({"records": self.render(records, tokens)})
        examples = []
        for neuron in prompt.examples:
            examples.append(Message("user", _numbered(map(level_lines, neuron.records))))
            examples.append(Message("assistant", neuron.explanation))
        return [*instructions, *examples, question]

    def revision_messages(
        self,
        prompt: Prompt,
        revision: Prompt,
        records: Sequence[Exemplar],
        tokens: Tokens,
        explanation: str,
        mistakes: str,
    ) -> list[Message]:
        """The first request's turns, the explanation that was the answer, and the mistakes that it led to."""
        first_request = self.messages(prompt, records, tokens)
        return [*first_request, Message("assistant", explanation), *revision.fill({"mistakes": mistakes})]


EXAMPLE_MEANINGS = "\n".join(
    f"words for {topic} by sea, the # of them | 1" for topic in ("travelling", "trading", "fishing")
)
EXPLAINERS: Mapping[str, Explainer] = {
    explainer.name: explainer
    for explainer in (
        Explainer("pairs", 5, "explain/pairs", render_pairs),
        Explainer("excerpts", 10, "explain/excerpts", render_excerpts),
        Explainer(
            name="meanings",
            n_records=10,
            prompt="explain/meanings",
            render=render_numbered_excerpts,
            max_tokens=120,
            parse=parse_meanings,
            gives_several=True,
            example_reply=EXAMPLE_MEANINGS,
        ),
        Explainer("tokens", 10, None, list_peak_tokens),
    )
}
