"""The viewer as static files: pages from the live viewer's templates, JSON data, search in the browser.

neuron.html takes ?at=15:16 and fetches data/neurons/LAYER-CHUNK.json, which holds the HTML that the live
viewer would draw for some neighbouring units; their lazy sections are in data/fragments/. search.html finds
the numbers of rows by words of their explanations and by tokens on which their units peak in data/words/ and
data/tokens/, two indexes cut into files by hash. The rows themselves are in data/rows-N.json, best first, and
the browser reads as many of these files as it needs.

Memory grows by some bytes a unit: each page is drawn, written and forgotten.
"""

from __future__ import annotations

import json
import re
import shutil
from array import array
from bisect import bisect_left
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import chain, groupby
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neuroexplain.as_json import query_json
from neuroexplain.formats._site_compare import compare_pages
from neuroexplain.formats._whole_folder import whole_folder
from neuroexplain.formats.base import Format
from neuroexplain.formatting import corpus_name, dictionary_lines, headline_name
from neuroexplain.lookup import Vocabulary, load_page
from neuroexplain.runs import QueryRow, Run, UnitPage
from neuroexplain.runtime.progress import Progress
from neuroexplain.scorers.base import SCORERS, main_metrics
from neuroexplain.store.engine import Store
from neuroexplain.store.failures import list_failures
from neuroexplain.store.search import query_explanations
from neuroexplain.units import PEAK_INDEX, UnitId
from neuroexplain.web.reader import summarize
from neuroexplain.web.record_view import record_views, simulated_views, simulations
from neuroexplain.web.row_view import EMPTY_SEARCH, SORT_LABELS, RowView, failure_view, row_view
from neuroexplain.web.templates import CONTENT_POLICY, STATIC, printable_lines, render
from neuroexplain.web.unit_view import LAZY_KINDS, unit_view
from neuroexplain.web.urls import UNITS_PER_FILE, UrlBuilder, site_file

ROWS_PER_FILE = 2_000  # about 0.8 MB; a search sorted by score reads one or two of these files
INDEX_FILES = 256  # of words, and as many of tokens
N_BEST = 12  # rows of the start page
N_FAILURES = 2_000  # rows of the page of failures
NO_LIMIT = 10**9  # more rows than any layer has

URLS = UrlBuilder(is_site=True)


@dataclass(frozen=True, slots=True)
class WrittenRows:
    """The explanations in the rows' files."""

    best: Sequence[RowView]  # for the start page
    places: NDArray[np.int64]  # [rows]: each row's unit, as its place among the exported units


def export_site(store: Store, run: Run, units: Sequence[UnitId], folder: Path) -> Generator[Progress]:
    """Write the site of the given units, which are in ascending order. Any web server can serve it.

    The folder appears when it is complete. Raises NeuroexplainError if it exists or cannot be written.
    """
    with whole_folder(folder) as partial:
        shutil.copytree(STATIC, partial / "static", ignore=shutil.ignore_patterns("docs.js"))
        data = partial / "data"
        for name in ("neurons", "fragments"):
            (data / name).mkdir(parents=True)
        with _Index(data / "words") as words:
            rows = _write_rows(store, run, units, data, words)
        with _Index(data / "tokens") as tokens:
            yield from _write_units(store, run, units, data, tokens, rows.places)
        _write_json(data / "index.json", _site_index(run, units, len(rows.places)))
        for name, html in chain(_pages(store, run, units, rows.best), _compare_pages(store, run, units)):
            (partial / f"{name}.html").write_text(html, encoding="utf-8")


def _write_units(
    store: Store, run: Run, units: Sequence[UnitId], data: Path, tokens: _Index, places: NDArray[np.int64]
) -> Generator[Progress]:
    """The units' pages and lazy sections, and the tokens on which they peak in the index."""
    vocabulary = Vocabulary.load(store, run.id)
    row_numbers = places.argsort(kind="stable")  # unit by unit
    first = np.searchsorted(places[row_numbers], np.arange(len(units) + 1))  # of each unit
    done, exported = 0, set(units)
    for name, chunk in groupby(units, key=site_file):
        pages: dict[str, str] = {}
        sections: dict[str, str] = {}
        for unit in chunk:
            page = load_page(store, run, unit, vocabulary)
            neighbours = (
                units[done - 1] if done else None,
                units[done + 1] if done + 1 < len(units) else None,
            )
            view = unit_view(page, URLS, neighbours=neighbours, has_page=exported.__contains__)
            pages[str(unit)] = render("_unit.html", unit=view, urls=URLS)
            sections |= {f"{unit}/{section}": html for section, html in _sections(page)}
            tokens.add(_peak_tokens(page), row_numbers[first[done] : first[done + 1]].tolist())
            done += 1
            yield Progress("exporting", done, len(units), "neurons")
        _write_json(data / "neurons" / f"{name}.json", pages)
        _write_json(data / "fragments" / f"{name}.json", sections)


def _peak_tokens(page: UnitPage) -> set[str]:
    """The texts of the tokens on which a unit's top records peak."""
    records = (record for record in page.unit.exemplars if record.kind == "top")
    return {page.tokens[int(record.token_ids[PEAK_INDEX])].text for record in records}


def _sections(page: UnitPage) -> Iterator[tuple[str, str]]:
    """The lazy sections of a unit's page as HTML, by the names in UrlBuilder.section."""
    for kind in LAZY_KINDS:
        if records := record_views(page, kind):
            yield f"records/{kind}", render("records.html", records=records)
    for prediction in simulations(page):
        html = render("records.html", records=simulated_views(page, prediction))
        yield f"simulations/{prediction.id}", html


def _site_index(run: Run, units: Sequence[UnitId], n_rows: int) -> dict[str, Any]:
    """What site.js needs to find a unit's file and a row's file."""
    return {
        "chunk": UNITS_PER_FILE,
        "rows": n_rows,
        "widths": {source.layer: source.width for source in run.sources},
        "groups": {source.layer: source.group_size for source in run.sources},
        "layers": sorted({unit.layer for unit in units}),
        "rows_in_a_file": ROWS_PER_FILE,
        "buckets": INDEX_FILES,
    }


def _pages(
    store: Store, run: Run, units: Sequence[UnitId], best: Sequence[RowView]
) -> Iterator[tuple[str, str]]:
    """(name, HTML) of the site's pages that do not compare."""
    common = {"urls": URLS, "content_policy": CONTENT_POLICY}
    summary, headline = summarize(store, run), headline_name(run.headline)
    yield (
        "index",
        render(
            "start.html",
            run=run,
            summary=summary,
            best=best,
            runs=[run],
            corpus=corpus_name(run),
            headline=headline,
            dictionaries=dictionary_lines(run),
            **common,
        ),
    )
    yield (
        "search",
        render(
            "search.html",
            form=EMPTY_SEARCH,
            problem="",
            rows=[],
            scorers=SCORERS.names(),
            headline=headline,
            sorts=SORT_LABELS,
            previous=None,
            next=None,
            **common,
        ),
    )
    failures = list_failures(store, run, main_metrics(), None, N_FAILURES)
    yield (
        "failed",
        render(
            "failed.html",
            counts=summary.failures,
            failures=[
                failure_view(run, f, URLS.unit(f.unit) if _holds(units, f.unit) else "") for f in failures
            ],
            n_more=sum(summary.failures.values()) - len(failures),
            previous=None,
            next=None,
            **common,
        ),
    )
    yield "neuron", render("site_unit.html", **common)


def _compare_pages(store: Store, run: Run, units: Sequence[UnitId]) -> Iterator[tuple[str, str]]:
    return compare_pages(store, run, URLS, lambda unit: _holds(units, unit))


def _unit_url(units: Sequence[UnitId], unit: UnitId) -> str:
    """The address of a unit's page; empty if the site does not hold it."""
    return URLS.unit(unit) if _holds(units, unit) else ""


def _holds(units: Sequence[UnitId], unit: UnitId) -> bool:
    """Whether the unit is among these, which are in ascending order."""
    place = bisect_left(units, unit)
    return place < len(units) and units[place] == unit


def words_of(text: str) -> list[str]:
    """The words by which search finds an explanation; static/site.js has the same function."""
    return re.findall(r"\w+", text.lower())


def bucket_of(key: str) -> int:
    """The number of the index file that holds a word or token; static/site.js has the same function.

    FNV-1a with 32 bits of the UTF-8: http://www.isthe.com/chongo/tech/comp/fnv/
    """
    value = 2166136261
    for byte in key.encode("utf-8", "replace"):
        value = (value ^ byte) * 16777619 & 0xFFFFFFFF
    return value % INDEX_FILES


class _Index:
    """Row numbers by word or token, in INDEX_FILES files.

    Lines are appended to each file as they come. At the end each is read and written as one object: one file
    of the index is in memory at a time.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __enter__(self) -> _Index:
        self._folder.mkdir()
        self._stack = ExitStack()
        self._files = [self._stack.enter_context(self._lines(n).open("w")) for n in range(INDEX_FILES)]
        return self

    def add(self, keys: Iterable[str], rows: Iterable[int]) -> None:
        for row in rows:
            for key in keys:
                self._files[bucket_of(key)].write(json.dumps([key, row]) + "\n")

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._stack.close()
        if kind is not None:
            return
        for n in range(INDEX_FILES):
            rows_by_key: dict[str, list[int]] = {}
            with self._lines(n).open() as file:
                for key, row in map(json.loads, file):
                    rows_by_key.setdefault(key, []).append(row)
            _write_json(self._folder / f"{n}.json", {key: sorted(rows) for key, rows in rows_by_key.items()})
            self._lines(n).unlink()

    def _lines(self, n: int) -> Path:
        return self._folder / f"{n}.lines"


def _best_first(store: Store, run: Run) -> Iterator[QueryRow]:
    """Every chosen explanation, best first, those without a score last.

    Each query begins at the score where the one before ended; `seen` are the rows of that score.
    """
    last: float | None = 1.0
    seen: set[tuple[int, str | None, str | None]] = set()

    def key(row: QueryRow) -> tuple[int, str | None, str | None]:
        return row.explanation_id, row.scorer, row.scorer_model

    while rows := query_explanations(store, run, max_score=last, limit=ROWS_PER_FILE + len(seen)):
        fresh = [row for row in rows if key(row) not in seen]
        if not fresh:
            break
        yield from fresh
        last = rows[-1].score
        seen = {key(row) for row in rows if row.score == last}
    for layer in run.layers:
        rows = query_explanations(store, run, layers=[layer], sort="unit", limit=NO_LIMIT)
        yield from (row for row in rows if row.score is None)


def _write_rows(store: Store, run: Run, units: Sequence[UnitId], data: Path, words: _Index) -> WrittenRows:
    """The units' explanations, best first, in files of ROWS_PER_FILE, and their words in the index."""
    places = array("q")
    best: list[RowView] = []
    waiting: list[QueryRow] = []

    def write() -> None:
        if waiting:
            _write_json(data / f"rows-{(len(places) - 1) // ROWS_PER_FILE}.json", query_json(waiting))
            waiting.clear()

    for stored in _best_first(store, run):
        place = bisect_left(units, stored.unit)
        if place == len(units) or units[place] != stored.unit:
            continue
        row = replace(
            stored,
            explanation=printable_lines(stored.explanation),
            rule=None if stored.rule is None else printable_lines(stored.rule),
            examples=None if stored.examples is None else tuple(map(printable_lines, stored.examples)),
        )
        words.add(set(words_of(row.explanation)), [len(places)])
        places.append(place)
        waiting.append(row)
        if len(best) < N_BEST:
            best.append(row_view(row))
        if len(places) % ROWS_PER_FILE == 0:
            write()
    write()
    return WrittenRows(best, np.frombuffer(places, np.int64) if places else np.zeros(0, np.int64))


def _write_json(file: Path, value: Any) -> None:
    file.write_text(json.dumps(value, separators=(",", ":")))


class Site(Format):
    name = "site"
    about = "the viewer as static files"

    def write(self, store: Store, run: Run, units: Sequence[UnitId], folder: Path) -> Generator[Progress]:
        return export_site(store, run, units, folder)


FORMAT = Site()
