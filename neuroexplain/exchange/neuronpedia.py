"""Neuronpedia's import folders: features/, activations/ and explanations/, each of batch-N.jsonl.gz.

The importer takes the columns from a file's first line, so every line has all of them. Scores have no place in the format.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import Any

from neuroexplain.exchange.whole import whole_folder
from neuroexplain.pipeline.page import load_page
from neuroexplain.pipeline.progress import Progress
from neuroexplain.present import short_name
from neuroexplain.store.engine import Store
from neuroexplain.types import NeuronId, NeuronPage, Run

BATCH = 512  # neurons in one file
CREATOR = "neuroexplain"


def export_neuronpedia(store: Store, run: Run, neurons: Sequence[NeuronId], folder: Path) -> Generator[Progress]:
    """Write the neurons' features, activations (top and bottom records) and explanations that are ok."""
    with whole_folder(folder) as partial:
        for name in ("features", "activations", "explanations"):
            (partial / name).mkdir()
        for first in range(0, len(neurons), BATCH):
            rows: dict[str, list[dict[str, Any]]] = {"features": [], "activations": [], "explanations": []}
            for done, neuron in enumerate(neurons[first : first + BATCH], first + 1):
                page = load_page(store, run, neuron)
                rows["features"].append(feature_row(page))
                rows["activations"] += activation_rows(page)
                rows["explanations"] += explanation_rows(page)
                yield Progress("exporting", done, len(neurons), "neurons")
            for name, lines in rows.items():
                if lines:
                    _write(partial / name / f"batch-{first // BATCH}.jsonl.gz", lines)


def feature_row(page: NeuronPage) -> dict[str, Any]:
    """A neuron itself: its vocabulary reading and how often it fires."""
    n, stats = page.neuron, page.neuron.stats
    return {
        **_whose(page),
        "creatorId": CREATOR,
        "maxActApprox": max((x.activation for x in n.exemplars if x.kind == "top"), default=0.0),
        "frac_nonzero": None if stats is None else stats.share_positive,
        "pos_str": [page.tokens[i].text for i, _ in n.promoted],
        "pos_values": [value for _, value in n.promoted],
        "neg_str": [page.tokens[i].text for i, _ in n.suppressed],
        "neg_values": [value for _, value in n.suppressed],
    }


def activation_rows(page: NeuronPage) -> list[dict[str, Any]]:
    """The top and bottom records, in rank order."""
    rows = []
    for x in page.neuron.exemplars:
        if x.kind == "random":
            continue
        values = x.activations.tolist()
        low, high = min(values), max(values)
        rows.append(
            {
                "id": f"{_model(page)}-{page.neuron.id.layer}-{page.neuron.id.neuron}-{x.kind}-{x.rank}",
                **_whose(page),
                "creatorId": CREATOR,
                "tokens": [page.tokens[i].text for i in x.token_ids.tolist()],
                "values": values,
                "maxValue": high,
                "maxValueTokenIndex": values.index(high),
                "minValue": low,
                "dataSource": x.kind,
                "binMin": low,
                "binMax": high,
                "binContains": 1.0,
            }
        )
    return rows


def explanation_rows(page: NeuronPage) -> list[dict[str, Any]]:
    """The explanations that are ok, best first."""
    return [
        {
            "id": f"{_model(page)}-{page.neuron.id.layer}-{page.neuron.id.neuron}-explanation-{e.id}",
            **_whose(page),
            "authorId": CREATOR,
            "description": e.text,
            "typeName": f"neuroexplain_{e.explainer}",
            "explanationModelName": short_name(e.provenance.model),
        }
        for e in page.explanations
        if e.status == "ok"
    ]


def _whose(page: NeuronPage) -> Mapping[str, Any]:
    neuron = page.neuron.id
    return {"modelId": _model(page), "layer": f"{neuron.layer}-mlp-{page.run.activation}", "index": str(neuron.neuron)}


def _model(page: NeuronPage) -> str:
    return short_name(page.run.subject).rsplit("/", 1)[-1].lower()


def _write(file: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    with gzip.open(file, "wt", encoding="utf-8", compresslevel=5) as out:
        out.writelines(json.dumps(line, ensure_ascii=True, allow_nan=False) + "\n" for line in lines)
