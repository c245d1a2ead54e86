"""The code blocks of the README and of the pages, and what stands in for what a test does not have."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
DOCS = ROOT / "docs"
_FENCE = re.compile(r"^( *)```(\w*).*?\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
_NOT_RUN = re.compile(r"<!-- not run: (.+) -->\s*\Z")


@dataclass(frozen=True)
class Block:
    """A code block of a page."""

    page: str  # like llama.md
    line: int  # of its first line
    language: str  # sh, console, python, toml, text ...
    text: str
    not_run: str | None  # the reason, where the page gives one

    @property
    def commands(self) -> list[str]:
        """What is typed. In `console` that is after a dollar sign; the rest is output."""
        text = self.text.replace("\\\n", " ")
        lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
        if self.language == "console":
            return [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
        return lines if self.language == "sh" else []


def list_pages() -> list[Path]:
    """The README, then the pages as the site's navigation lists them."""
    config = (ROOT / "zensical.toml").read_text(encoding="utf-8")
    return [ROOT / "README.md", *(DOCS / name for name in re.findall(r'"([\w/-]+\.md)"', config))]


def read_blocks(page: Path) -> Iterator[Block]:
    """All code blocks of a page, in order."""
    text = page.read_text(encoding="utf-8")
    for match in _FENCE.finditer(text):
        reason = _NOT_RUN.search(text[: match.start()])
        line = text.count("\n", 0, match.start()) + 2
        yield Block(page.name, line, match[2], match[3], reason[1] if reason is not None else None)


# Pages whose commands follow each other with SmolLM2 as the subject and a server that answers. On all others
# the tests' tiny model will do.
SERVER_PAGES = ("README.md", "llama.md", "vllm.md", "explaining.md", "scores.md")
# What is typed on a page, and what a test types instead. Models, texts and servers become local ones, numbers
# smaller. In order; the first column is a regular expression.
STAND_INS = [
    (r"\bneuroexplain serve\b", "neuroexplain serve --port 0"),
    (r"meta-llama/Meta-Llama-3-8B|\./llama\b", "{subject}"),
    (r"HuggingFaceTB/SmolLM2-135M-Instruct", "tiny"),
    (r"Qwen/Qwen2.5-7B-Instruct", "smollm2"),
    (r"HuggingFaceFW/fineweb-edu\s+--dataset-config sample-10BT|'texts/\*\.jsonl'", "text.jsonl"),
    (r"http://gpu1:8000/v1", "$ANSWERING_SERVER"),
    (r"--segments \d+", "--segments 48{layers}"),
    (r"--layer 15\b", "{units}"),
    (r"15:0-9\b|15:10-19\b|15:0-3\b|15:0-1\b", "15:0"),
    (r"15:20-21\b|15:4\b", "15:3"),  # a unit that SmolLM2 has a category for
    (r"--layers 0-15\b", "--layers 0"),
    (r"--layers 12\b", "--layers 1"),
    (r"12:3\.0-63 --sample 20", "1:1.0-3 --sample 2"),
    (
        r"--candidates 2 --revise 1",
        "--candidates 2 --revise 1 --allow-failed",
    ),  # SmolLM2 has not so many answers
    # More models than a user's have explained here.
    (r"(--explainers category,tokens)", r"\1 --models Qwen/Qwen2.5-32B-Instruct,tokens"),
    (r"--device cuda:0,cuda:1,cuda:2,cuda:3", "--device cpu"),
    (r"--batch-size 256", "--batch-size 8"),
    (r"neuroexplain demo\b", "neuroexplain demo --model tiny --segments 60"),
]
# Pages of the tiny model have no server. What is launched on a cluster is printed: tests/launching runs it.
TINY_STAND_INS = [
    (r"(\bexplain .*)--server http://gpu1:8000/v1", r"\1--explainer tokens --local tiny"),
    (r"--server http://gpu1:8000/v1", "--local tiny"),
    (r"launch (slurm|ray) --shards 64( --submit)?", r"launch \1 --shards 2 --dry-run"),
    (r"neuroexplain (export .*)--push \S+", r"env $HUB neuroexplain \1--push jane/neurons"),
    (r"--layers 0-31", "--units 0:0-3"),
    (r"/shared/x\.db", "whole.db"),
]
DEMO_UNITS = {"7:425": "0:3", "23:125": "1:4", "(23, 125)": "(1, 4)", "layers=[23]": "layers=[1]"}


def substitute(text: str, page: str) -> str:
    """A command or a Python block with what stands in for large things."""
    tiny = page not in SERVER_PAGES
    names = {
        "{subject}": "tiny" if tiny else "smollm2",
        "{layers}": "" if tiny else " --layers 15",
        "{units}": "--layer 1" if tiny else "--units 15:16",
    }
    for pattern, stand_in in [*(TINY_STAND_INS if tiny else []), *STAND_INS]:
        text = re.sub(pattern, stand_in, text)
    for name, value in names.items():
        text = text.replace(name, value)
    for unit, stand_in in DEMO_UNITS.items():
        text = text.replace(unit, stand_in)
    return text
