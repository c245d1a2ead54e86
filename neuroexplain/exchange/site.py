"""The viewer as static files: pages by the live viewer's templates, data in chunks, search in the browser.

neuron.html takes ?at=15:16 and fetches data/neurons/LAYER-CHUNK.json, where the neuron's part of the page lies as the live
viewer would draw it; search.html goes through data/rows-N.json, best first, until its page is full.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Generator, Sequence
from pathlib import Path

from neuroexplain.exchange.whole import whole_folder
from neuroexplain.pipeline.page import load_page
from neuroexplain.pipeline.progress import Progress
from neuroexplain.present import query_json
from neuroexplain.store.engine import Store
from neuroexplain.store.read import count_explanations, count_neurons, list_headline_scores, query_explanations
from neuroexplain.types import NeuronId, Run
from neuroexplain.web import views

CHUNK = 32  # neurons of one file
ROWS = 2_000  # explanations of one file


def export_site(store: Store, run: Run, neurons: Sequence[NeuronId], folder: Path) -> Generator[Progress]:
    """Write the site of the given neurons. Any web host serves it; opened as a file it shows only its start page.

    The folder appears when it is whole.
    """
    links = views.Links(is_site=True)
    with whole_folder(folder) as partial:
        shutil.copytree(views.HERE / "static", partial / "static", ignore=shutil.ignore_patterns("swagger-ui", "docs.js"))
        data = partial / "data"
        (data / "neurons").mkdir(parents=True)
        n_files = _write_rows(store, run, set(neurons), data)
        chunks: dict[str, dict[str, str]] = {}
        for done, neuron in enumerate(neurons, 1):
            name = f"{neuron.layer}-{neuron.neuron // CHUNK}"
            if name not in chunks:
                _write_chunks(data, chunks)
            view = views.neuron_view(load_page(store, run, neuron), links, neighbours=neurons, place=done - 1)
            chunks.setdefault(name, {})[str(neuron)] = views.render("_neuron.html", n=view, links=links)
            yield Progress("exporting", done, len(neurons), "neurons")
        _write_chunks(data, chunks)
        index = {"chunk": CHUNK, "rows": n_files, "neurons": [[n.layer, n.neuron] for n in neurons]}
        (data / "index.json").write_text(json.dumps(index, separators=(",", ":")))
        best = [views.row_view(row) for row in query_explanations(store, run.id, limit=200) if row.neuron in set(neurons)][:12]
        values = {"links": links, "csp": views.CSP}
        pages = {
            "index": views.render(
                "start.html",
                run=run,
                charts=views.score_charts(list_headline_scores(store, run.id)),
                counts=count_explanations(store, run.id),
                n_neurons=sum(count_neurons(store, run.id).values()),
                best=best,
                runs=[run],
                corpus=views.corpus_name(run),
                **values,
            ),
            "search": views.render(
                "search.html", state=views.EMPTY_SEARCH, problem="", rows=[], previous=None, next=None, **values
            ),
            "neuron": views.render("site_neuron.html", **values),
        }
        for name, html in pages.items():
            (partial / f"{name}.html").write_text(html, encoding="utf-8")


def _write_rows(store: Store, run: Run, neurons: set[NeuronId], data: Path) -> int:
    """All explanations of the neurons, best first, in files of ROWS; returns how many files."""
    number = 0
    while rows := query_explanations(store, run.id, limit=ROWS, offset=number * ROWS):
        kept = [one for row, one in zip(rows, query_json(rows), strict=True) if row.neuron in neurons]
        for one in kept:
            one["explanation"] = views.printable_lines(one["explanation"])
        (data / f"rows-{number}.json").write_text(json.dumps(kept, separators=(",", ":")))
        number += 1
    return number


def _write_chunks(data: Path, chunks: dict[str, dict[str, str]]) -> None:
    """Write what is at hand and forget it: neurons come in order, so a chunk is whole when the next one begins."""
    for name, fragments in chunks.items():
        (data / "neurons" / f"{name}.json").write_text(json.dumps(fragments, separators=(",", ":")))
    chunks.clear()
