"""A text of a reader's own: one unit's activations on it, and the units that fire most on one token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup

from neuroexplain.formatting import number, rule_first
from neuroexplain.lookup import load_page
from neuroexplain.probe import Probe, StrongUnit
from neuroexplain.runs import Run
from neuroexplain.store.engine import Store
from neuroexplain.units import UnitId
from neuroexplain.web.tokens import draw_tokens, visible
from neuroexplain.web.urls import UrlBuilder


@dataclass(frozen=True, slots=True)
class StrongUnitView:
    """A unit that fires on a token, as a line of a table."""

    unit: UnitId
    activation: str
    share: str  # of the unit's maximum in its corpus
    explanation: str
    score: str


@dataclass(frozen=True, slots=True)
class TryView:
    """What the model does on a text."""

    tokens: tuple[str, ...] = ()
    unit: UnitId | None = None
    drawn: Markup | None = None  # the tokens, coloured by the unit's activations; None without a unit
    strongest: tuple[StrongUnitView, ...] = ()  # at the position, strongest first


EMPTY_TRY = TryView()


def try_view(
    store: Store, probe: Probe, run: Run, text: str, unit: UnitId | None, position: int | None
) -> TryView:
    """Raises NeuroexplainError for another model's run, an unknown unit, or a position behind the text."""
    drawn = None if unit is None else _draw_activations(store, probe, run, text, unit)
    strongest = [] if position is None else probe.strongest_units(store, text, run, position)
    return TryView(
        tokens=tuple(probe.tokens(text)),
        unit=unit,
        drawn=drawn,
        strongest=tuple(_strong_unit_view(neuron) for neuron in strongest),
    )


def token_links(tokens: Sequence[str], urls: UrlBuilder, **state: Any) -> list[tuple[str, str]]:
    """Each token's text, and the address of the page with that token's strongest units."""
    return [(visible(token), urls.try_text(**state, position=place)) for place, token in enumerate(tokens)]


def _draw_activations(store: Store, probe: Probe, run: Run, text: str, unit: UnitId) -> Markup:
    """Coloured relative to the unit's strongest record, or to the text if that is stronger."""
    records = load_page(store, run, unit).unit.exemplars
    tokens, activations = probe.activations(text, run, unit)
    strongest = max((abs(record.activation) for record in records), default=0.0)
    return draw_tokens(tokens, np.array(activations), max(strongest, *map(abs, activations)))


def _strong_unit_view(neuron: StrongUnit) -> StrongUnitView:
    row = neuron.row
    return StrongUnitView(
        unit=neuron.unit,
        activation=f"{neuron.activation:.3g}",
        share=f"{neuron.share:.0%}",
        explanation="not explained" if row is None else rule_first(row.explanation, row.rule, row.examples),
        score="" if row is None else number(row.score),
    )
