"""Drawing a record's tokens: a line of boxes, coloured by activation.

Live pages, the static site and notebooks draw records with this one function. It joins strings: a Jinja
include per record took 22 ms a page, strings take 2.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from markupsafe import Markup, escape
from numpy.typing import NDArray

from neuroexplain.evidence import PredictedRecord
from neuroexplain.formatting import printable

SHADES = 20  # steps of a colour; each is a class in tokens.css, because the policy forbids style attributes
CLASSES = {step: f"{'n' if step < 0 else 'p'}{abs(step)}" for step in range(-SHADES, SHADES + 1)}


def draw_tokens(
    texts: Sequence[str],
    values: NDArray[Any],
    strongest: float,
    *,
    special: Sequence[bool] | None = None,
    prediction: PredictedRecord | None = None,
    top_level: float = 0.0,
) -> Markup:
    """One box a token: its text, coloured by its value relative to `strongest`; the largest is outlined.

    `values` has one raw activation a token. A token without a text is a later part of a character. `special`
    marks the tokenizer's special tokens. With a `prediction`, the simulated levels stand under the tokens
    that were scored, coloured relative to `top_level`; a level of NaN is drawn as "no prediction". Colours
    are classes: p and n for positive and negative values, s for simulated levels.
    """
    classes = [CLASSES[step] for step in shades(values, strongest)]
    levels_below, notes = [""] * len(texts), [""] * len(texts)
    if len(texts):
        classes[int(values.argmax())] += " peak"
    if special is not None:
        for place, is_special in zip(range(len(texts)), special, strict=True):
            classes[place] += " special" if is_special else ""
    for place, text in enumerate(texts):
        classes[place] += "" if text else " part"
    if prediction is not None:
        levels = prediction.values
        steps = shades(np.maximum(np.nan_to_num(levels), 0), top_level)
        for place, (step, level) in enumerate(zip(steps, levels.tolist(), strict=True), prediction.first):
            level_text = "" if math.isnan(level) else f"{level:.2f}"
            classes[place] += " crop"
            levels_below[place] = f'<i class="s{step}">{level_text}</i>'
            notes[place] = f" · simulated {level_text or 'no prediction'}"
    boxes = [
        f'<span class="t {names}" data-v="{value:.4g}{note}">{_escaped(text)}{below}</span>'
        for text, value, names, below, note in zip(
            texts, values.tolist(), classes, levels_below, notes, strict=True
        )
    ]
    return Markup("".join(boxes))


def shades(values: NDArray[Any], strongest: float) -> list[int]:
    """Each value's step of colour on a log scale, -SHADES to SHADES. The formula is formatting.strength."""
    if strongest <= 0:
        return [0] * len(values)
    share = np.minimum(np.abs(values) / strongest, 1.0)
    steps = np.where(values == 0, 0, np.rint((0.05 + 0.95 * np.log10(1 + 9 * share)) * SHADES)).astype(int)
    signed_steps: list[int] = np.where(values < 0, -steps, steps).tolist()
    return signed_steps


def visible(text: str) -> str:
    """A token's text with white space shown, and without characters that a browser would act on or hide."""
    text = printable(text)
    return "␣" * len(text) if text and not text.strip() else text


@lru_cache(maxsize=200_000)  # about one vocabulary: a page shows some thousand tokens, most of them often
def _escaped(text: str) -> str:
    return str(escape(visible(text)))
