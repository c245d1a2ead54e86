"""A unit and search results as HTML for a notebook: drawn as in the viewer, with the style included."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from neuroexplain.runs import QueryRow, UnitPage
from neuroexplain.web.row_view import row_view
from neuroexplain.web.templates import STATIC, render
from neuroexplain.web.unit_view import unit_view
from neuroexplain.web.urls import UrlBuilder


def notebook_unit(page: UnitPage, n_records: int = 8) -> str:
    """A unit's explanations and its strongest records."""
    view = unit_view(page, UrlBuilder())
    css = (STATIC / "tokens.css").read_text(encoding="utf-8")
    return render("notebook_unit.html", unit=view, records=view.top_records[:n_records], css=Markup(css))


def notebook_rows(rows: Sequence[QueryRow]) -> str:
    """Search results as a table."""
    return render("notebook_rows.html", rows=[row_view(row) for row in rows])
