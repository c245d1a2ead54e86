"""Neuronpedia's import folders: MODEL/SOURCE/, one a layer, each with four descriptions and three folders of batches.

Its importer takes one source at a time: release, model, sourceset and source (.jsonl) become rows by name, and the columns of
features (its table Neuron), activations and explanations are those of a file's first line; what a line leaves out gets the
column's default, and an explicit null in a column that forbids it fails the file. So every line of a file has the same columns,
and none holds a null where its schema (apps/webapp/prisma/schema.prisma, read in August 2026) forbids one. Explanations name a
type and a model that its tables must know: config/ holds both, to be put with its own configuration. Scores have no place.
"""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Generator, Iterable, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from neuroexplain.evidence import Status
from neuroexplain.formats._whole_folder import whole_folder
from neuroexplain.formats.base import Format
from neuroexplain.formatting import corpus_name, random_histogram, short_name
from neuroexplain.lookup import load_page
from neuroexplain.runs import Run, UnitPage
from neuroexplain.runtime.progress import Progress
from neuroexplain.store.engine import Store
from neuroexplain.units import SEGMENT_LENGTH, UnitId

BATCH = 512  # neurons in one file
BY = "neuroexplain"
CREATOR = "clkht01d40000jv08hvalcvly"  # the user that a Neuronpedia of one's own has from the start: rows need one that exists
NO_BIN = -1.0  # its mark for "among the strongest", in place of an interval and the share of tokens in it


def export_neuronpedia(
    store: Store, run: Run, neurons: Sequence[UnitId], folder: Path
) -> Generator[Progress]:
    """Write the neurons' features, activations (top and bottom records) and explanations that are ok."""
    done, explained_by = 0, set()
    with whole_folder(folder) as partial:
        for layer, group in groupby(sorted(neurons), key=lambda one: one.layer):
            source = partial / model_id(run) / source_id(run, layer)
            for name in ("features", "activations", "explanations"):
                (source / name).mkdir(parents=True)
            for name, line in descriptions(run, layer).items():
                _write(source / f"{name}.jsonl", [line])
            own = list(group)
            for first in range(0, len(own), BATCH):
                rows: dict[str, list[dict[str, Any]]] = {
                    "features": [],
                    "activations": [],
                    "explanations": [],
                }
                for neuron in own[first : first + BATCH]:
                    page = load_page(store, run, neuron)
                    rows["features"].append(feature_row(page))
                    rows["activations"] += activation_rows(page)
                    rows["explanations"] += explanation_rows(page)
                    done += 1
                    yield Progress("exporting", done, len(neurons), "neurons")
                explained_by |= {
                    (one["typeName"], one["explanationModelName"]) for one in rows["explanations"]
                }
                for name, lines in rows.items():
                    if lines:
                        _write(source / name / f"batch-{first // BATCH}.jsonl.gz", lines)
        (partial / "config").mkdir()
        types, models = ({one[i] for one in explained_by} for i in (0, 1))
        _write(
            partial / "config" / "explanation_type.jsonl",
            [{**_named(name), "creatorId": CREATOR} for name in sorted(types)],
        )
        _write(partial / "config" / "explanation_model_type.jsonl", [_named(name) for name in sorted(models)])


def model_id(run: Run) -> str:
    """Its id of the subject: small letters, digits, dashes and underscores."""
    return (
        re.sub(r"[^a-z0-9_-]+", "-", short_name(run.subject).rsplit("/", 1)[-1].lower()).strip("-") or "model"
    )


def source_id(run: Run, layer: int) -> str:
    """Its id of one layer's neurons, which it also calls their layer."""
    return f"{layer}-{_set_name(run)}"


def descriptions(run: Run, layer: int) -> dict[str, dict[str, Any]]:
    """What the importer must know before a layer's rows, by file."""
    name, title = short_name(run.subject), f"MLP neurons of {short_name(run.subject)}"
    made = {"creatorName": BY, "creatorId": CREATOR, "visibility": "PUBLIC"}
    return {
        "release": {"name": f"{model_id(run)}-{_set_name(run)}", "description": title, "urls": [], **made},
        "model": {
            **{
                "id": model_id(run),
                "displayName": name,
                "displayNameShort": name,
                "owner": name.split("/")[0],
            },
            **{
                "layers": run.n_layers,
                "neuronsPerLayer": max(source.width for source in run.sources),
                "creatorId": CREATOR,
                "visibility": "PUBLIC",
            },
        },
        "sourceset": {
            **{"modelId": model_id(run), "name": _set_name(run), "description": title, "urls": [], **made},
            "releaseName": f"{model_id(run)}-{_set_name(run)}",
        },
        "source": {
            **{
                "id": source_id(run, layer),
                "modelId": model_id(run),
                "setName": _set_name(run),
                "creatorId": CREATOR,
            },
            **{
                "dataset": corpus_name(run),
                "num_prompts": run.n_segments,
                "num_tokens_in_prompt": SEGMENT_LENGTH,
            },
            "visibility": "PUBLIC",
        },
    }


def feature_row(page: UnitPage) -> dict[str, Any]:
    """A neuron itself: its vocabulary reading, how often it fires, and a histogram of the random records."""
    n = page.unit
    counts, middles = random_histogram(n.exemplars)
    return {
        **_whose(page),
        "creatorId": CREATOR,
        "maxActApprox": _strongest(page),
        **({} if n.stats is None else {"frac_nonzero": n.stats.share_positive}),
        "pos_str": [page.tokens[i].text for i, _ in n.promoted],
        "pos_values": [value for _, value in n.promoted],
        "neg_str": [page.tokens[i].text for i, _ in n.suppressed],
        "neg_values": [value for _, value in n.suppressed],
        "freq_hist_data_bar_heights": counts,
        "freq_hist_data_bar_values": middles,
    }


def activation_rows(page: UnitPage) -> list[dict[str, Any]]:
    """The top and bottom records, in rank order. The top ones bear the mark of its group of strongest activations."""
    rows = []
    for x in page.unit.exemplars:
        if x.kind == "random":
            continue
        values, is_top = x.activations.tolist(), x.kind == "top"
        rows.append(
            {
                "id": f"{_key(page)}-{x.kind}-{x.rank}",
                **_whose(page),
                "creatorId": CREATOR,
                "tokens": [page.tokens[i].text for i in x.token_ids.tolist()],
                "values": values,
                "maxValue": max(values),
                "maxValueTokenIndex": values.index(max(values)),
                "minValue": min(values),
                "dataSource": x.kind,
                "binMin": NO_BIN if is_top else None,
                "binMax": _strongest(page) if is_top else None,
                "binContains": NO_BIN if is_top else None,
            }
        )
    return rows


def explanation_rows(page: UnitPage) -> list[dict[str, Any]]:
    """The explanations that are ok, best first."""
    return [
        {
            "id": f"{_key(page)}-explanation-{e.id}",
            **_whose(page),
            "authorId": CREATOR,
            "description": e.text,
            "typeName": f"{BY}_{e.explainer}",
            "explanationModelName": short_name(e.provenance.model),
        }
        for e in page.explanations
        if e.status == Status.OK
    ]


def _whose(page: UnitPage) -> Mapping[str, str]:
    neuron = page.unit.id
    return {
        "modelId": model_id(page.run),
        "layer": source_id(page.run, neuron.layer),
        "index": str(neuron.index),
    }


def _key(page: UnitPage) -> str:
    return "-".join(_whose(page).values())


def _strongest(page: UnitPage) -> float:
    return max((float(x.activations.max()) for x in page.unit.exemplars if x.kind == "top"), default=0.0)


def _set_name(run: Run) -> str:
    return f"mlp-{run.activation}"


def _named(name: str) -> dict[str, str]:
    return {"name": name, "displayName": name, "description": name, "creatorName": BY}


def _write(file: Path, lines: Iterable[Mapping[str, Any]]) -> None:
    text = "".join(json.dumps(line, ensure_ascii=True, allow_nan=False) + "\n" for line in lines)
    file.write_bytes(gzip.compress(text.encode(), 5) if file.suffix == ".gz" else text.encode())


class Neuronpedia(Format):
    name = "neuronpedia"
    about = "Neuronpedia's import folders"

    def write(self, store: Store, run: Run, units: Sequence[UnitId], folder: Path) -> Generator[Progress]:
        return export_neuronpedia(store, run, units, folder)


FORMAT = Neuronpedia()
