"""Where links lead: routes of the live viewer, or files of the static site."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from neuroexplain.units import UnitId

UNITS_PER_FILE = 8  # pages in one file of the static site: a browser fetches the seven neighbours too


@dataclass(frozen=True, slots=True)
class UrlBuilder:
    """The addresses of pages, parts of pages and static files."""

    run_id: int | None = None  # None: the latest run, which addresses leave out
    is_site: bool = False

    def start(self) -> str:
        return "index.html" if self.is_site else self._address("/", {})

    def unit(self, unit: UnitId, **state: Any) -> str:
        """A unit's page. `state` names the lazy sections that are open there; the static site ignores it."""
        if self.is_site:
            return f"neuron.html?at={unit}"
        return self._address(f"/{unit.layer}/{unit.index}", state)

    def section(self, unit: UnitId, name: str) -> str:
        """The source of a lazy section, `records/random` or `simulations/7`; on the site FILE#KEY."""
        if self.is_site:
            return f"data/fragments/{site_file(unit)}.json#{unit}/{name}"
        return self._address(f"/{unit.layer}/{unit.index}/{name}", {})

    def search(self, **filters: Any) -> str:
        return self._address("search.html" if self.is_site else "/search", filters)

    def failed(self, **filters: Any) -> str:
        """The page of what could not be explained or scored."""
        return self._address("failed.html" if self.is_site else "/failed", filters)

    def compare(self, **filters: Any) -> str:
        """The page of two side by side. The filters name the runs; the static site has a page a pair."""
        return "compare.html" if self.is_site else UrlBuilder()._address("/compare", filters)

    def random(self) -> str:
        return "neuron.html?at=random" if self.is_site else self._address("/random", {})

    def prompt(self, sha256: str) -> str | None:
        """The page of a prompt; None on the static site, which has no prompts."""
        return None if self.is_site else self._address(f"/prompts/{sha256}", {})

    def try_text(self, **state: Any) -> str:
        """The page that reads a text with the subject: only the live viewer has it."""
        return self._address("/try", state)

    def static(self, name: str) -> str:
        return f"static/{name}" if self.is_site else f"/static/{name}"

    def _address(self, path: str, query: Mapping[str, Any]) -> str:
        """The path with the query's values, without empty ones, and the run."""
        values = {name: value for name, value in query.items() if value not in (None, "")}
        if self.run_id is not None:
            values["run"] = self.run_id
        return f"{path}?{urlencode(values)}" if values else path


def site_file(unit: UnitId) -> str:
    """The name, without its ending, of the static site's file that holds a unit's page."""
    return f"{unit.layer}-{unit.index // UNITS_PER_FILE}"
