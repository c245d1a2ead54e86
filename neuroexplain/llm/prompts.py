"""Find, hash and fill the files of prompts/."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from neuroexplain.llm.engine import Message


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt file: chat turns headed by `### role`, with blanks like `{{records}}`."""

    name: str
    text: str

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.text.encode()).hexdigest()

    def fill(self, values: Mapping[str, str]) -> list[Message]:
        """The turns with every blank filled. Values are data: what looks like a blank or a heading in them stays text."""
        parts = re.split(r"^### (system|user|assistant)\n", self.text, flags=re.MULTILINE)[1:]
        turns = zip(parts[::2], parts[1::2], strict=True)
        return [Message(role, re.sub(r"\{\{(\w+)\}\}", lambda m: values[m[1]], body).strip()) for role, body in turns]


def load_prompt(name: str) -> Prompt:
    """The file `prompts/NAME.txt`, shipped inside the wheel or beside the package in a checkout."""
    return Prompt(name, (prompts_folder() / f"{name}.txt").read_text(encoding="utf-8"))


def prompts_folder() -> Path:
    package = Path(__file__).resolve().parent.parent
    shipped = package / "_prompts"
    return shipped if shipped.is_dir() else package.parent / "prompts"


def displayed(text: str) -> str:
    """A token as prompts show it: on one line, without tabs, control characters or chat markers. The one place for this."""
    shown = "".join(_VISIBLE.get(c) or (c if c.isprintable() else f"\\u{ord(c):04x}") for c in text)
    return re.sub(r"<(?=[|/]?\w)|(?<=\w)>|\|>", _swap, shown)


_VISIBLE = {"\n": "\\n", "\t": "\\t", "\r": "\\r", "\ufffd": "\ufffd"}


def _swap(match: re.Match[str]) -> str:
    return match[0].replace("<", "\u2039").replace(">", "\u203a")
