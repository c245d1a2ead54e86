"""The viewer as static files: pages by the live viewer's templates, data in chunks, search in the browser.

neuron.html takes ?at=15:16 and fetches data/neurons/LAYER-CHUNK.json, where the neuron's part of the page lies as the live
viewer would draw it; what is folded on that page lies in data/fragments/. search.html finds rows by their words and by the
tokens that their neurons peak on in data/words/ and data/tokens/ (which row numbers, by hash), and reads the rows themselves,
best first, from data/rows-N.json, only as many files as it needs.
"""

from __future__ import annotations

import json
import re
import shutil
from array import array
from bisect import bisect_left
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neuroexplain.formats._whole_folder import whole_folder
from neuroexplain.formats.base import Format
from neuroexplain.formatting import corpus_name, query_json
from neuroexplain.lookup import Vocabulary, load_page
from neuroexplain.runs import QueryRow, Run, UnitPage
from neuroexplain.runtime.progress import Progress
from neuroexplain.scorers.base import SCORERS
from neuroexplain.store.engine import Store
from neuroexplain.store.runs import count_explanations, count_units
from neuroexplain.store.search import list_headline_scores, query_explanations
from neuroexplain.units import PEAK_INDEX, UnitId
from neuroexplain.web import views
from neuroexplain.web.views import Links

ROWS = 2_000  # explanations of one file
BUCKETS = 256  # files of an index
BEST = 12  # rows of the start page
ALL = 10**9


def export_site(store: Store, run: Run, neurons: Sequence[UnitId], folder: Path) -> Generator[Progress]:
    """Write the site of the given neurons, which are in ascending order. Any web host serves it.

    The folder appears when it is whole. Memory grows by some bytes a neuron: what is drawn is written and forgotten.
    """
    links = Links(is_site=True)
    vocabulary = Vocabulary.load(store, run.id)
    with whole_folder(folder) as partial:
        shutil.copytree(
            views.HERE / "static", partial / "static", ignore=shutil.ignore_patterns("swagger-ui", "docs.js")
        )
        data = partial / "data"
        for name in ("neurons", "fragments"):
            (data / name).mkdir(parents=True)
        with _Index(data / "words") as words:
            n_rows, best, places = _write_rows(store, run, neurons, data, words)
        order = places.argsort(kind="stable")  # the rows, neuron by neuron
        first = np.searchsorted(places[order], np.arange(len(neurons) + 1))
        done = 0
        with _Index(data / "tokens") as tokens:
            for name, chunk in groupby(neurons, key=views.chunk_name):
                pages: dict[str, str] = {}
                fragments: dict[str, str] = {}
                for neuron in chunk:
                    page = load_page(store, run, neuron, vocabulary)
                    view = views.neuron_view(page, links, neighbours=neurons, place=done)
                    pages[str(neuron)] = views.render("_neuron.html", n=view, links=links)
                    fragments |= {f"{neuron}/{part}": html for part, html in _fragments(page)}
                    peaks = {
                        page.tokens[int(x.token_ids[PEAK_INDEX])].text
                        for x in page.unit.exemplars
                        if x.kind == "top"
                    }
                    tokens.add(peaks, order[first[done] : first[done + 1]].tolist())
                    done += 1
                    yield Progress("exporting", done, len(neurons), "neurons")
                _write(data / "neurons" / f"{name}.json", pages)
                _write(data / "fragments" / f"{name}.json", fragments)
        index = {
            "chunk": views.CHUNK,
            "rows": n_rows,
            "widths": {source.layer: source.width for source in run.sources},
            "groups": {source.layer: source.group_size for source in run.sources},
            "layers": sorted({n.layer for n in neurons}),
        }
        _write(data / "index.json", index | {"rows_in_a_file": ROWS, "buckets": BUCKETS})
        values = {"links": links, "csp": views.CSP}
        html = {
            "index": views.render(
                "start.html",
                run=run,
                charts=views.score_charts(list_headline_scores(store, run)),
                counts=count_explanations(store, run.id),
                n_units=sum(count_units(store, run.id).values()),
                best=best,
                runs=[run],
                corpus=corpus_name(run),
                **values,
            ),
            "search": views.render(
                "search.html",
                state=views.EMPTY_SEARCH,
                problem="",
                rows=[],
                scorers=SCORERS.names(),
                headline=str(run.headline),
                previous=None,
                next=None,
                **values,
            ),
            "neuron": views.render("site_neuron.html", **values),
        }
        for name, text in html.items():
            (partial / f"{name}.html").write_text(text, encoding="utf-8")


def words_of(text: str) -> list[str]:
    """What search finds an explanation by: static/site.js cuts words alike."""
    return re.findall(r"\w+", text.lower())


def bucket_of(key: str) -> int:
    """Which file of an index holds a word or token: FNV-1a of its UTF-8, 32 bits. static/site.js has the same."""
    found = 2166136261
    for byte in key.encode("utf-8", "replace"):
        found = (found ^ byte) * 16777619 & 0xFFFFFFFF
    return found % BUCKETS


class _Index:
    """Row numbers by word, in BUCKETS files: lines are appended as they come and put together at the end, file by file."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __enter__(self) -> _Index:
        self.folder.mkdir()
        self.stack = ExitStack()
        self.files = [
            self.stack.enter_context((self.folder / f"{n}.lines").open("w")) for n in range(BUCKETS)
        ]
        return self

    def add(self, keys: Iterable[str], rows: Iterable[int]) -> None:
        for row in rows:
            for key in keys:
                self.files[bucket_of(key)].write(json.dumps([key, row]) + "\n")

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.stack.close()
        if kind is not None:
            return
        for n in range(BUCKETS):
            lines = self.folder / f"{n}.lines"
            found: dict[str, list[int]] = {}
            with lines.open() as file:
                for key, row in map(json.loads, file):
                    found.setdefault(key, []).append(row)
            _write(self.folder / f"{n}.json", {key: sorted(rows) for key, rows in found.items()})
            lines.unlink()


def _best_first(store: Store, run: Run) -> Iterator[QueryRow]:
    """Every chosen explanation, best first, unscored ones last. Each query begins at the score where the one before ended."""
    last: float | None = 1.0
    seen: set[tuple[int, str | None, str | None]] = set()  # of those with that score

    def key(row: QueryRow) -> tuple[int, str | None, str | None]:
        return row.explanation_id, row.scorer, row.scorer_model

    while rows := query_explanations(store, run, max_score=last, limit=ROWS + len(seen)):
        fresh = [row for row in rows if key(row) not in seen]
        if not fresh:
            break
        yield from fresh
        last = rows[-1].score
        seen = {key(row) for row in rows if row.score == last}
    for layer in run.layers:
        rows = query_explanations(store, run, layers=[layer], sort="unit", limit=ALL)
        yield from (row for row in rows if row.score is None)


def _write_rows(
    store: Store, run: Run, neurons: Sequence[UnitId], data: Path, words: _Index
) -> tuple[int, list[views.RowView], NDArray[np.int64]]:
    """The neurons' explanations, best first, in files of ROWS, and their words in the index.

    Returns how many there are, the best for the start page, and the place in `neurons` of each, in the order of the files.
    """
    places = array("q")
    best: list[views.RowView] = []
    waiting: list[QueryRow] = []

    def write() -> None:
        if waiting:
            _write(data / f"rows-{(len(places) - 1) // ROWS}.json", query_json(waiting))
            waiting.clear()

    for found in _best_first(store, run):
        place = bisect_left(neurons, found.unit)
        if place == len(neurons) or neurons[place] != found.unit:
            continue
        row = replace(found, explanation=views.printable_lines(found.explanation))
        words.add(set(words_of(row.explanation)), [len(places)])
        places.append(place)
        waiting.append(row)
        if len(best) < BEST:
            best.append(views.row_view(row))
        if len(places) % ROWS == 0:
            write()
    write()
    return len(places), best, np.frombuffer(places, np.int64) if places else np.zeros(0, np.int64)


def _fragments(page: UnitPage) -> Iterator[tuple[str, str]]:
    """What is folded on a neuron's page, by the name in Links.fragment."""
    for kind in ("bottom", "random"):
        if records := views.record_views(page, kind):
            yield f"records/{kind}", views.render("records.html", records=records)
    for prediction in page.predictions:
        if prediction.records and prediction.codec == "levels":
            yield (
                f"simulations/{prediction.id}",
                views.render("records.html", records=views.simulated_views(page, prediction)),
            )


def _write(file: Path, value: Any) -> None:
    file.write_text(json.dumps(value, separators=(",", ":")))


class Site(Format):
    name = "site"
    about = "the viewer as static files"

    def write(self, store: Store, run: Run, units: Sequence[UnitId], folder: Path) -> Generator[Progress]:
        return export_site(store, run, units, folder)


FORMAT = Site()
