"""Find, hash and fill the prompt files in prompts/."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any

from neuroexplain.llm.engine import Message

_EXAMPLES = re.compile(r"^### (examples|drawn) (\S+)\n", re.MULTILINE)
_NARROWED = re.compile(r"^### narrowed (\S+)\n", re.MULTILINE)
# After a prompt file's own text: the files that it names.
_WORKED, _NARROWER = "### worked neurons\n", "### narrower\n"
# In a worked neuron's text: a token that fires with its level, like "[oaks 9]", or another token.
_WORKED_TOKEN = re.compile(r"(?P<space> ?)(?:\[(?P<fires>[^\]]+) (?P<level>\d+)\]|(?P<silent>\w+|[^\w\s]))")


@dataclass(frozen=True, slots=True)
class WorkedExample:
    """A made-up neuron, or a category of words, that a prompt shows together with the right answer."""

    explanation: str
    kind: str = ""  # of what it fires on, like "function"; examples that are drawn have one
    records: tuple[tuple[tuple[str, int], ...], ...] = ()  # each a list of (token, level 0..10)
    words: str = ""  # of a category, separated by commas
    wider: str = ""  # of a narrower category: the part of speech that was the answer before


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt file: turns under `### role` headings, with blanks like `{{records}}`.

    A line `### examples FILE` names the file of its worked examples, all of which are shown; `### drawn FILE`
    a file of which each request shows some; `### narrowed PROMPT` the prompt that asks again if the answer is
    a bare part of speech.
    """

    name: str
    text: str  # the prompt file, then the files that it names: everything that an LLM is told
    examples: tuple[WorkedExample, ...] = ()
    pool: tuple[WorkedExample, ...] = ()
    narrower: Prompt | None = None

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.text.encode()).hexdigest()

    def fill(self, values: Mapping[str, str]) -> list[Message]:
        """The turns with every blank filled. Values are data: a blank or a heading in them stays text."""
        template = self.text.split(_WORKED)[0].split(_NARROWER)[0]
        parts = re.split(r"^### (system|user|assistant)\n", template, flags=re.MULTILINE)[1:]
        turns = zip(parts[::2], parts[1::2], strict=True)
        return [
            Message(role, re.sub(r"\{\{(\w+)\}\}", lambda blank: values[blank[1]], body).strip())
            for role, body in turns
        ]


@cache
def load_prompt(name: str) -> Prompt:
    """The prompt in `prompts/NAME.txt`."""
    text = (prompts_folder() / f"{name}.txt").read_text(encoding="utf-8")
    prompt = _with_worked(name, text)
    narrowed = _NARROWED.search(text)
    if narrowed is None:
        return prompt
    narrower = load_prompt(narrowed[1])
    return replace(prompt, text=f"{prompt.text}{_NARROWER}{narrower.text}", narrower=narrower)


def _with_worked(name: str, text: str) -> Prompt:
    """The prompt of a file with this text, with the worked examples that it names."""
    heading = _EXAMPLES.search(text)
    if heading is None:
        return Prompt(name, text)
    examples_json = (prompts_folder() / "examples" / heading[2]).read_text(encoding="utf-8")
    text = f"{text}{_WORKED}{examples_json}"
    worked = tuple(_worked_example(**row) for row in json.loads(examples_json))
    if heading[1] == "drawn":
        return Prompt(name, text, pool=worked)
    return Prompt(name, text, worked)


def _worked_example(
    explanation: str,
    records: Sequence[str | list[list[Any]]] = (),
    words: str = "",
    kind: str = "",
    wider: str = "",
) -> WorkedExample:
    """A row of a file of worked examples, whose records are texts or lists of tokens with levels."""
    parsed = (worked_tokens(r) if isinstance(r, str) else tuple((t, n) for t, n in r) for r in records)
    return WorkedExample(explanation, kind, tuple(parsed), words, wider)


def worked_tokens(text: str) -> tuple[tuple[str, int], ...]:
    """The tokens of a worked neuron's text with their levels: `an [oak 9]` is ("an", 0), (" oak", 9)."""
    tokens = _WORKED_TOKEN.finditer(text)
    return tuple((t["space"] + (t["fires"] or t["silent"]), int(t["level"] or 0)) for t in tokens)


def prompts_folder() -> Path:
    """The folder of the prompt files: inside the package if it was installed from a wheel, else beside it."""
    package = Path(__file__).resolve().parent.parent
    shipped = package / "_prompts"
    return shipped if shipped.is_dir() else package.parent / "prompts"


def displayed(text: str) -> str:
    """A token as all prompts show it: on one line, without tabs, control characters or chat markers."""
    visible = "".join(_VISIBLE.get(c) or (c if c.isprintable() else f"\\u{ord(c):04x}") for c in text)
    return re.sub(r"<(?=[|/]?\w)|(?<=\w)>|\|>", _replace_brackets, visible)


def marked(texts: Sequence[str], is_marked: Sequence[bool]) -> str:
    """Tokens as prompts show them on one line: marked stretches stand between **, their first space outside.

    A text's own ** are taken apart, so that it cannot mark anything; a chat marker that several tokens spell
    is seen as a whole.
    """
    line = ""
    for mark, stretch in groupby(zip(texts, is_marked, strict=True), key=lambda pair: bool(pair[1])):
        text = displayed("".join(part for part, _ in stretch))
        while "**" in text:
            text = text.replace("**", "* *")
        word = text.lstrip(" ") or text
        line += f"{text[: len(text) - len(word)]}**{word}**" if mark and text else text
    return line.strip()


def level_lines(record: Iterable[tuple[str, int | str]]) -> str:
    """The lines of a record in a prompt, one a token: its text, a tab, and its level or level word."""
    return "\n".join(f"{displayed(text)}\t{level}" for text, level in record)


_VISIBLE = {"\n": "\\n", "\t": "\\t", "\r": "\\r", "\ufffd": "\ufffd"}


def _replace_brackets(marker: re.Match[str]) -> str:
    """Quotation marks in place of the angle brackets that a chat marker needs."""
    return marker[0].replace("<", "\u2039").replace(">", "\u203a")
