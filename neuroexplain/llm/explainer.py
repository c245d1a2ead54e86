"""Exemplars -> messages, and a reply -> the text of an explanation (pure). EXPLAINERS lists all there are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from neuroexplain.errors import LlmReplyError
from neuroexplain.llm.engine import Message
from neuroexplain.llm.prompts import Prompt, displayed, level_lines, load_prompt
from neuroexplain.scoring.levels import to_levels
from neuroexplain.types import PEAK_INDEX, Exemplar, VocabularyEntry

Tokens = Mapping[int, VocabularyEntry]
MARKED_FROM = 4  # the level from which `excerpts` marks a token
LONGEST_REPLY = 400  # characters: more is rambling, not a hypothesis
_REFUSALS = ("i cannot", "i can't", "i'm sorry", "i am sorry", "as an ai", "i'm unable", "i am unable")


@dataclass(frozen=True)
class Explainer:
    """A way to write a hypothesis from a neuron's `explain` records."""

    name: str
    n_records: int  # strongest top records that are shown
    prompt: str | None  # its file in prompts/; None where no LLM is asked
    render: Callable[[Sequence[Exemplar], Tokens], str]  # records -> the prompt's blank, or without an LLM the text itself
    max_tokens: int = 40

    def load_prompt(self) -> Prompt | None:
        return None if self.prompt is None else load_prompt(self.prompt)

    def messages(self, prompt: Prompt, records: Sequence[Exemplar], tokens: Tokens) -> list[Message]:
        """The prompt's turns; its worked neurons stand before the last, each as a question and its answer."""
        *before, asked = prompt.fill({"records": self.render(records, tokens)})
        worked = [
            turn
            for neuron in prompt.examples
            for turn in (Message("user", _numbered(map(level_lines, neuron.records))), Message("assistant", neuron.explanation))
        ]
        return [*before, *worked, asked]


def parse_reply(text: str) -> str:
    """The hypothesis in an LLM's answer: its first line, tidied. Raises LlmReplyError (`parse_error`) where there is none."""
    if "<think>" in text and "</think>" not in text:
        raise LlmReplyError("parse_error", "the answer is reasoning that was cut off", text)
    answer = text.split("</think>")[-1].strip()
    first = answer.splitlines()[0].strip() if answer else ""
    tidy = first.replace("**", "").strip(" \"'*`.").removeprefix("Explanation:").strip()
    if not any(c.isalnum() for c in tidy):
        raise LlmReplyError("parse_error", "the answer is empty", text)
    if tidy.lower().startswith(_REFUSALS):
        raise LlmReplyError("parse_error", "the answer is a refusal", text)
    if len(tidy) > LONGEST_REPLY:
        raise LlmReplyError("parse_error", f"the answer has {len(tidy)} characters, more than {LONGEST_REPLY}", text)
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


def list_peak_tokens(records: Sequence[Exemplar], tokens: Tokens) -> str:
    """The tokens that the records peak on, most frequent first: the baseline that an LLM must beat."""
    peaks = [displayed(tokens[int(x.token_ids[PEAK_INDEX])].text).strip() for x in records]
    counted = Counter(peak for peak in peaks if peak)
    if not counted:
        raise LlmReplyError("parse_error", "the neuron peaks on white space only")
    return ", ".join(token for token, _ in counted.most_common())


def _texts(record: Exemplar, tokens: Tokens) -> list[str]:
    return [tokens[int(token_id)].text for token_id in record.token_ids]


def _numbered(excerpts: Iterable[str]) -> str:
    return "\n\n".join(f"Excerpt {number}:\n{excerpt}" for number, excerpt in enumerate(excerpts, 1))


EXPLAINERS: Mapping[str, Explainer] = {
    one.name: one
    for one in (
        Explainer("pairs", 5, "explain/pairs", render_pairs),
        Explainer("excerpts", 10, "explain/excerpts", render_excerpts),
        Explainer("tokens", 10, None, list_peak_tokens),
    )
}
