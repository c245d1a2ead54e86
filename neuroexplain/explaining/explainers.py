"""The ways to write a hypothesis from a unit's records: EXPLAINERS lists them all."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from neuroexplain.evidence import Exemplar, Tokens
from neuroexplain.explaining.rendering import (
    firing_words,
    list_firing_words,
    list_peak_tokens,
    render_excerpts,
    render_numbered_excerpts,
    render_pairs,
    worked_categories,
    worked_excerpts,
    worked_meanings,
    worked_pairs,
)
from neuroexplain.explaining.replies import Hypothesis, parse_category, parse_meanings, parse_single
from neuroexplain.llm.engine import Message
from neuroexplain.llm.prompts import Prompt, WorkedExample, load_prompt
from neuroexplain.scoring.named_words import find_named
from neuroexplain.stable_hash import stable_hash


@dataclass(frozen=True)
class Explainer:
    """A way to write a hypothesis from a unit's `explain` records."""

    name: str
    n_records: int  # strongest records to show
    prompt: str | None  # file in prompts/; None if no LLM is asked
    render: Callable[
        [Sequence[Exemplar], Tokens], str
    ]  # records -> the prompt's blank; without an LLM, the explanation
    # Worked examples -> questions for the prompt's blank, and their answers.
    show_worked: Callable[[Sequence[WorkedExample]], list[tuple[str, str]]] = worked_categories
    max_tokens: int = 40  # of a reply
    parse: Callable[[str, Sequence[Exemplar]], list[Hypothesis]] = parse_single
    gives_several: bool = False  # whether one reply may hold several hypotheses
    is_bank: bool = False  # whether its hypotheses are the lines of its prompt file: see bank.py
    n_examples: int = 0  # words that fire which are added to the reply as examples, at most
    example_reply: str = (
        "words and phrases that have to do with travelling by sea, the # of them"  # for a dry run
    )

    @property
    def can_revise(self) -> bool:
        """Whether its reply can be given back with its mistakes: it is one hypothesis of an LLM."""
        return self.prompt is not None and not self.gives_several and not self.is_bank

    def find_examples(self, records: Sequence[Exemplar], tokens: Tokens, rule: str) -> tuple[str, ...]:
        """The strongest words that fire but those that the rule names: at most n_examples."""
        words = firing_words(records, tokens) if self.n_examples else []
        named = [bool(find_named([word], rule).any()) for word in words]
        return tuple(word for word, is_named in zip(words, named, strict=True) if not is_named)[
            : self.n_examples
        ]

    def load_prompt(self) -> Prompt | None:
        """Its prompt file; None if no LLM is asked."""
        return None if self.prompt is None else load_prompt(self.prompt)

    def messages(
        self,
        prompt: Prompt,
        records: Sequence[Exemplar],
        tokens: Tokens,
        *,
        draw: int = 0,
        with_worked: bool = True,
    ) -> list[Message]:
        """The prompt's turns, with its worked examples before the last one as questions and answers.

        draw chooses the worked examples. Without them the instruction and the question are left.
        """
        *turns, question = prompt.fill({"records": self.render(records, tokens)})
        if not with_worked:
            return [*(turn for turn in turns if turn.role == "system"), question]
        for shown_records, answer in self.show_worked(draw_worked(prompt.pool, question.content, draw)):
            turns.append(prompt.fill({"records": shown_records})[-1])
            turns.append(Message("assistant", answer))
        return [*turns, question]

    def revision_messages(
        self,
        prompt: Prompt,
        revision: Prompt,
        records: Sequence[Exemplar],
        tokens: Tokens,
        explanation: str,
        mistakes: str,
        *,
        draw: int = 0,
        with_worked: bool = True,
    ) -> list[Message]:
        """A first request's turns, the explanation that was the answer, and the mistakes that it led to."""
        first_request = self.messages(prompt, records, tokens, draw=draw, with_worked=with_worked)
        return [*first_request, Message("assistant", explanation), *revision.fill({"mistakes": mistakes})]


def narrower_messages(prompt: Prompt, category: str, words: str, *, draw: int = 0) -> list[Message]:
    """The question which words of a part of speech these are, after worked ones. draw: see messages."""
    wide = re.sub("^(?:an?|the) ", "", category.lower())
    plural = wide if wide.endswith("s") else f"{wide}s"
    *turns, question = prompt.fill({"category": plural, "records": words})
    for example in draw_worked(prompt.pool, question.content, draw):
        turns.append(prompt.fill({"category": example.wider, "records": example.words})[-1])
        turns.append(Message("assistant", example.explanation))
    return [*turns, question]


def draw_worked(pool: Sequence[WorkedExample], question: str, draw: int) -> list[WorkedExample]:
    """One worked example of each kind, in any order, by a hash of the question and the draw's number.

    So no answer stands before every question, and another draw is another prompt.
    """
    kinds = dict.fromkeys(example.kind for example in pool)
    hashes = {example: stable_hash(draw, example.explanation, question) for example in pool}
    drawn = [min((e for e in pool if e.kind == kind), key=hashes.__getitem__) for kind in kinds]
    return sorted(drawn, key=hashes.__getitem__)


def worked_answers(messages: Sequence[Message]) -> list[str]:
    """The hypotheses that a request's turns give as answers to worked examples."""
    answers = (turn.content for turn in messages if turn.role == "assistant")
    return [line.partition("|")[0].strip() for answer in answers for line in answer.splitlines()]


EXAMPLE_MEANINGS = "\n".join(
    f"words for {topic} by sea, the # of them | 1" for topic in ("travelling", "trading", "fishing")
)
EXPLAINERS: Mapping[str, Explainer] = {
    explainer.name: explainer
    for explainer in (
        Explainer(
            name="category",
            n_records=10,
            prompt="explain/category",
            render=list_firing_words,
            parse=parse_category,
            n_examples=5,
        ),
        Explainer("pairs", 5, "explain/pairs", render_pairs, worked_pairs),
        Explainer("excerpts", 10, "explain/excerpts", render_excerpts, worked_excerpts),
        Explainer(
            name="meanings",
            n_records=10,
            prompt="explain/meanings",
            render=render_numbered_excerpts,
            show_worked=worked_meanings,
            max_tokens=120,
            parse=parse_meanings,
            gives_several=True,
            example_reply=EXAMPLE_MEANINGS,
        ),
        Explainer("bank", 10, "explain/bank", list_firing_words, is_bank=True, n_examples=5),
        Explainer("tokens", 10, None, list_peak_tokens),
    )
}
# Explainers whose hypotheses no LLM writes.
WITHOUT_LLM = tuple(
    name for name, explainer in EXPLAINERS.items() if explainer.is_bank or not explainer.prompt
)
