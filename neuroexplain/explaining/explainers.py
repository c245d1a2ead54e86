"""Exemplars -> messages, and a reply -> hypotheses (pure). EXPLAINERS lists all there are."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from neuroexplain.errors import LlmReplyError
from neuroexplain.evidence import Exemplar, Status, Tokens
from neuroexplain.llm.engine import Message
from neuroexplain.llm.prompts import Prompt, displayed, level_lines, load_prompt
from neuroexplain.scoring.levels import to_levels
from neuroexplain.units import PEAK_INDEX

MARKED_FROM = 4  # the level from which `excerpts` marks a token
MOST_MEANINGS = 3
LONGEST_REPLY = 400  # characters: more is rambling, not a hypothesis
_REFUSAL = re.compile(
    r"(?:sorry, |unfortunately, )?i"
    r"(?: (?:cannot|can't|can not|won't|will not|apologi[sz]e)|(?:'m| am) (?:so )?(?:sorry|unable|not able))\b"
    r"|sorry, but\b|my apologies\b|as an ai\b"
)


@dataclass(frozen=True)
class Hypothesis:
    """What an LLM's answer says of a neuron, or one of the several things that it says."""

    text: str
    covers: tuple[int, ...] | None = (
        None  # ranks of the shown records; None where the explainer does not ask for them
    )


def parse_single(text: str, records: Sequence[Exemplar]) -> list[Hypothesis]:
    """The one hypothesis of an answer. Raises LlmReplyError (`parse_error`) where there is none."""
    return [Hypothesis(parse_reply(text))]


def parse_meanings(text: str, records: Sequence[Exemplar]) -> list[Hypothesis]:
    """Up to three hypotheses, a line each: `words | 1, 4, 5`, the numbers those of the excerpts that it covers.

    Raises LlmReplyError (`parse_error`) where no line is of that form, or one names an excerpt that was not shown.
    """
    answer = _without_reasoning(text)
    found = []
    for line in answer.splitlines():
        words, bar, said = line.partition("|")
        numbers = sorted(
            {int(one) if re.fullmatch(r"\s*\d{1,4}\s*", one, re.ASCII) else -1 for one in said.split(",")}
        )
        words = re.sub(r"^\s*(?:[-*]|\d+[.)])", "", words, flags=re.ASCII).strip()
        if not bar or not words or numbers[0] < 0:
            continue
        if not 1 <= numbers[0] <= numbers[-1] <= len(records):
            raise LlmReplyError(Status.PARSE_ERROR, f"an excerpt outside 1 to {len(records)} is named", text)
        found.append(Hypothesis(_tidied(words, text), tuple(records[n - 1].rank for n in numbers)))
    if not found:
        raise LlmReplyError(Status.PARSE_ERROR, "no line is of the form: words | numbers of excerpts", text)
    return found[:MOST_MEANINGS]


@dataclass(frozen=True)
class Explainer:
    """A way to write a hypothesis from a neuron's `explain` records."""

    name: str
    n_records: int  # strongest top records that are shown
    prompt: str | None  # its file in prompts/; None where no LLM is asked
    render: Callable[
        [Sequence[Exemplar], Tokens], str
    ]  # records -> the prompt's blank, or without an LLM the text itself
    max_tokens: int = 40
    parse: Callable[[str, Sequence[Exemplar]], list[Hypothesis]] = parse_single
    can_revise: bool = False  # whether its answer can be given back to it with what it got wrong
    example_reply: str = (
        "words and phrases that have to do with travelling by sea, the # of them"  # for a dry run; # differs
    )

    def load_prompt(self) -> Prompt | None:
        return None if self.prompt is None else load_prompt(self.prompt)

    def messages(self, prompt: Prompt, records: Sequence[Exemplar], tokens: Tokens) -> list[Message]:
        """The prompt's turns; its worked neurons stand before the last, each as a question and its answer."""
        *before, asked = prompt.fill({"records": self.render(records, tokens)})
        worked = [
            turn
            for neuron in prompt.examples
            for turn in (
                Message("user", _numbered(map(level_lines, neuron.records))),
                Message("assistant", neuron.explanation),
            )
        ]
        return [*before, *worked, asked]

    def revision_messages(
        self,
        prompt: Prompt,
        revision: Prompt,
        records: Sequence[Exemplar],
        tokens: Tokens,
        before: str,
        mistakes: str,
    ) -> list[Message]:
        """The turns of the first request, the answer that was given, and what was wrong with it."""
        asked = self.messages(prompt, records, tokens)
        return [*asked, Message("assistant", before), *revision.fill({"mistakes": mistakes})]


def parse_reply(text: str) -> str:
    """The hypothesis in an LLM's answer: its first line, tidied. Raises LlmReplyError (`parse_error`) where there is none."""
    answer = _without_reasoning(text)
    return _tidied(answer.splitlines()[0] if answer else "", text)


def union_text(hypotheses: Sequence[str]) -> str:
    """The text of a union of several hypotheses."""
    return "; or ".join(hypotheses)


def _without_reasoning(text: str) -> str:
    """What comes after the last thought."""
    answer = re.split("</think>", text, flags=re.IGNORECASE)[-1]
    if re.search("<think>", answer, flags=re.IGNORECASE):
        raise LlmReplyError(Status.PARSE_ERROR, "the answer is reasoning that was cut off", text)
    return answer.strip()


def _tidied(line: str, text: str) -> str:
    tidy = line.strip().replace("**", "").strip(" \"'*`.").removeprefix("Explanation:").strip()
    if not any(c.isalnum() for c in tidy):
        raise LlmReplyError(Status.PARSE_ERROR, "the answer is empty", text)
    if _REFUSAL.match(tidy.lower().replace("\u2019", "'")):
        raise LlmReplyError(Status.PARSE_ERROR, "the answer is a refusal", text)
    if len(tidy) > LONGEST_REPLY:
        raise LlmReplyError(
            Status.PARSE_ERROR, f"the answer has {len(tidy)} characters, more than {LONGEST_REPLY}", text
        )
    return tidy


def render_pairs(records: Sequence[Exemplar], tokens: Tokens) -> str:
    """Every token of the records with its level, scaled by the strongest of all that are shown (Bills et al. 2023)."""
    maximum = max(float(x.activations.max()) for x in records)
    shown = (zip(_texts(x, tokens), to_levels(x.activations, maximum).tolist(), strict=True) for x in records)
    return _numbered(map(level_lines, shown))


def render_excerpts(records: Sequence[Exemplar], tokens: Tokens) -> str:
    """One line a record: the text around its peak, with the firing tokens between **."""
    maximum = max(float(x.activations.max()) for x in records)
    lines = []
    for x in records:
        levels = to_levels(x.activations, maximum)
        line, marked = "", False
        for at in range(PEAK_INDEX - 12, PEAK_INDEX + 7):
            text = displayed(tokens[int(x.token_ids[at])].text).replace("**", "* *")
            fires = bool(levels[at] >= MARKED_FROM or at == PEAK_INDEX)
            if fires and not marked:
                space = text[: len(text) - len(text.lstrip())]
                text = f"{space}**{text.lstrip()}"
            elif marked and not fires:
                text = f"**{text}"
            line, marked = line + text, fires
        lines.append((line + ("**" if marked else "")).strip())
    return "\n".join(lines)


def render_numbered_excerpts(records: Sequence[Exemplar], tokens: Tokens) -> str:
    """As render_excerpts, each line with its number."""
    return "\n".join(
        f"{number}. {line}" for number, line in enumerate(render_excerpts(records, tokens).split("\n"), 1)
    )


def render_mistakes(
    crops: Sequence[tuple[Exemplar, int, Sequence[int], Sequence[int]]], tokens: Tokens
) -> str:
    """Crops of records with true and predicted levels: one line a token, `text<tab>true<tab>predicted`.

    Each crop is (record, its first token there, true levels, predicted levels), the levels both 0..10.
    """

    def lines(record: Exemplar, first: int, true: Sequence[int], predicted: Sequence[int]) -> str:
        shown = zip(_texts(record, tokens)[first : first + len(true)], true, predicted, strict=True)
        return "\n".join(f"{displayed(text)}\t{fired}\t{said}" for text, fired, said in shown)

    return _numbered(lines(*crop) for crop in crops)


def list_peak_tokens(records: Sequence[Exemplar], tokens: Tokens) -> str:
    """The tokens that the records peak on, most frequent first: the baseline that an LLM must beat."""
    peaks = [displayed(tokens[int(x.token_ids[PEAK_INDEX])].text).strip() for x in records]
    counted = Counter(peak for peak in peaks if peak)
    if not counted:
        raise LlmReplyError(Status.PARSE_ERROR, "the neuron peaks on white space only")
    return ", ".join(token for token, _ in counted.most_common())


def _texts(record: Exemplar, tokens: Tokens) -> list[str]:
    return [tokens[int(token_id)].text for token_id in record.token_ids]


def _numbered(excerpts: Iterable[str]) -> str:
    return "\n\n".join(f"Excerpt {number}:\n{excerpt}" for number, excerpt in enumerate(excerpts, 1))


EXPLAINERS: Mapping[str, Explainer] = {
    one.name: one
    for one in (
        Explainer("pairs", 5, "explain/pairs", render_pairs, can_revise=True),
        Explainer("excerpts", 10, "explain/excerpts", render_excerpts, can_revise=True),
        Explainer(
            "meanings",
            10,
            "explain/meanings",
            render_numbered_excerpts,
            120,
            parse_meanings,
            example_reply="\n".join(
                f"words for {what} by sea, the # of them | 1" for what in ("travelling", "trading", "fishing")
            ),
        ),
        Explainer("tokens", 10, None, list_peak_tokens),
    )
}
