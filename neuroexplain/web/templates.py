"""The templates: their environment, and the policy of every page that is drawn from them."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from neuroexplain.formatting import (
    activation_words,
    check_text,
    explained_by,
    explanations_text,
    interval,
    number,
    percent,
    printable,
    short_name,
    undefined_text,
    units_text,
)
from neuroexplain.score_words import SCORE_MEANING
from neuroexplain.status_words import status_counts

HERE = Path(__file__).resolve().parent
STATIC = HERE / "static"
# A page runs our own scripts alone, and no style attribute: text from a corpus or a model cannot act.
CONTENT_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "font-src 'self'; form-action 'self'; base-uri 'none'"
)


def render(name: str, **values: Any) -> str:
    """A template's HTML. Values other than Markup are escaped. A missing value raises UndefinedError."""
    return _environment().get_template(name).render(**values)


def printable_lines(text: str) -> str:
    """Several lines, each without characters that a browser would act on or hide."""
    return "\n".join(printable(line) for line in text.split("\n"))


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(HERE / "templates"), autoescape=True, undefined=StrictUndefined
    )
    environment.trim_blocks = environment.lstrip_blocks = True
    filters = {
        "activation_words": activation_words,
        "explained_by": explained_by,
        "explanations_text": explanations_text,
        "interval": interval,
        "number": number,
        "percent": percent,
        "printable": printable,
        "printable_lines": printable_lines,
        "short_name": short_name,
        "undefined_text": undefined_text,
        "units_text": units_text,
        "status_counts": status_counts,
        "check_text": check_text,
    }
    environment.filters |= filters
    environment.globals["score_meaning"] = SCORE_MEANING
    return environment
