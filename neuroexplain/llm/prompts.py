"""Find, hash and fill the files of prompts/."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from neuroexplain.llm.engine import Message

_EXAMPLES = re.compile(r"^### examples (\S+)\n", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class WorkedNeuron:
    """A neuron of our own making that a prompt shows with its answer."""

    explanation: str
    records: tuple[tuple[tuple[str, int], ...], ...]  # each a list of (token, level 0..10)


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt file: turns headed by `### role`, blanks like `{{records}}`; `### examples FILE` names its worked neurons."""

    name: str
    text: str  # the file, and the worked neurons' file after it: all that the LLM is told
    examples: tuple[WorkedNeuron, ...] = ()

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.text.encode()).hexdigest()

    def fill(self, values: Mapping[str, str]) -> list[Message]:
        """The turns with every blank filled. Values are data: what looks like a blank or a heading in them stays text."""
        template = self.text.split("### worked neurons\n")[0]
        parts = re.split(r"^### (system|user|assistant)\n", template, flags=re.MULTILINE)[1:]
        turns = zip(parts[::2], parts[1::2], strict=True)
        return [
            Message(role, re.sub(r"\{\{(\w+)\}\}", lambda m: values[m[1]], body).strip())
            for role, body in turns
        ]


@cache
def load_prompt(name: str) -> Prompt:
    """The file `prompts/NAME.txt`, shipped inside the wheel or beside the package in a checkout."""
    text = (prompts_folder() / f"{name}.txt").read_text(encoding="utf-8")
    wanted = _EXAMPLES.search(text)
    if wanted is None:
        return Prompt(name, text)
    worked = (prompts_folder() / "examples" / wanted[1]).read_text(encoding="utf-8")
    examples = tuple(
        WorkedNeuron(
            one["explanation"],
            tuple(tuple((token, level) for token, level in record) for record in one["records"]),
        )
        for one in json.loads(worked)
    )
    return Prompt(name, f"{text}### worked neurons\n{worked}", examples)


def prompts_folder() -> Path:
    package = Path(__file__).resolve().parent.parent
    shipped = package / "_prompts"
    return shipped if shipped.is_dir() else package.parent / "prompts"


def displayed(text: str) -> str:
    """A token as prompts show it: on one line, without tabs, control characters or chat markers. The one place for this."""
    shown = "".join(_VISIBLE.get(c) or (c if c.isprintable() else f"\\u{ord(c):04x}") for c in text)
    return re.sub(r"<(?=[|/]?\w)|(?<=\w)>|\|>", _swap, shown)


def level_lines(record: Iterable[tuple[str, int | str]]) -> str:
    """One line a token: its text, a tab and its level or word, as explainers and simulators read them."""
    return "\n".join(f"{displayed(text)}\t{level}" for text, level in record)


_VISIBLE = {"\n": "\\n", "\t": "\\t", "\r": "\\r", "\ufffd": "\ufffd"}


def _swap(match: re.Match[str]) -> str:
    return match[0].replace("<", "\u2039").replace(">", "\u203a")
