"""Folders for Neuronpedia's importer: MODEL/SOURCE/ for each layer, with four descriptions and three tables.

What Neuronpedia's importer and schema (apps/webapp/prisma/schema.prisma) asked for in August 2026:

- It imports one source at a time. release.jsonl, model.jsonl, sourceset.jsonl and source.jsonl become rows
  by name.
- The columns of features (its table Neuron), activations and explanations are those of a file's first line,
  and a null in a column that forbids it makes the whole file fail. So every line of a file has the same
  columns, and none has a null that the schema forbids.
- An explanation names a type and a model that must exist: config/ holds both, to be added to its
  configuration.
- It has no place for scores.
"""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Collection, Generator, Iterable, Mapping, Sequence
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
from neuroexplain.store.rows import chunks
from neuroexplain.units import SEGMENT_LENGTH, STRONGEST, UnitId

TABLES = ("features", "activations", "explanations")
BATCH = 512  # units in one file
BY = "neuroexplain"
CREATOR = "clkht01d40000jv08hvalcvly"  # a user that every new Neuronpedia has: rows need an existing user
NO_BIN = -1.0  # marks a record among the strongest, in place of an interval and the share of tokens in it


def export_neuronpedia(store: Store, run: Run, units: Sequence[UnitId], folder: Path) -> Generator[Progress]:
    """Write the units' features, activations (top and bottom records) and explanations with status ok.

    The folder appears when it is complete. Raises NeuroexplainError if it exists or cannot be written.
    """
    done = 0
    explained_by: set[tuple[str, str]] = set()  # types and models of explanations
    with whole_folder(folder) as partial:
        for layer, layer_units in groupby(sorted(units), key=lambda unit: unit.layer):
            source = partial / model_id(run) / source_id(run, layer)
            for table in TABLES:
                (source / table).mkdir(parents=True)
            for name, line in descriptions(run, layer).items():
                _write(source / f"{name}.jsonl", [line])
            for number, batch in enumerate(chunks(layer_units, BATCH)):
                rows: dict[str, list[dict[str, Any]]] = {table: [] for table in TABLES}
                for unit in batch:
                    page = load_page(store, run, unit)
                    rows["features"].append(feature_row(page))
                    rows["activations"] += activation_rows(page)
                    rows["explanations"] += explanation_rows(page)
                    done += 1
                    yield Progress("exporting", done, len(units), "neurons")
                explained_by |= {
                    (row["typeName"], row["explanationModelName"]) for row in rows["explanations"]
                }
                for table, lines in rows.items():
                    if lines:
                        _write(source / table / f"batch-{number}.jsonl.gz", lines)
        _write_config(partial / "config", explained_by)


def _write_config(folder: Path, explained_by: Collection[tuple[str, str]]) -> None:
    """Write the types and models that explanations name."""
    folder.mkdir()
    types = [{**_named(name), "creatorId": CREATOR} for name in sorted({name for name, _ in explained_by})]
    models = [_named(name) for name in sorted({name for _, name in explained_by})]
    _write(folder / "explanation_type.jsonl", types)
    _write(folder / "explanation_model_type.jsonl", models)


def model_id(run: Run) -> str:
    """Neuronpedia's id of the subject: small letters, digits, dashes and underscores."""
    name = short_name(run.subject).rsplit("/", 1)[-1].lower()
    return re.sub(r"[^a-z0-9_-]+", "-", name).strip("-") or "model"


def source_id(run: Run, layer: int) -> str:
    """Neuronpedia's id of one layer's units, which it also calls their layer."""
    return f"{layer}-{_set_name(run)}"


def descriptions(run: Run, layer: int) -> dict[str, dict[str, Any]]:
    """The rows that must exist before a layer's rows, by file."""
    name, set_name = short_name(run.subject), _set_name(run)
    creator = {"creatorId": CREATOR, "visibility": "PUBLIC"}
    release_name = f"{model_id(run)}-{set_name}"
    common = {"description": f"MLP neurons of {name}", "urls": [], "creatorName": BY, **creator}
    return {
        "release": {"name": release_name, **common},
        "model": {
            "id": model_id(run),
            "displayName": name,
            "displayNameShort": name,
            "owner": name.split("/")[0],
            "layers": run.n_layers,
            "neuronsPerLayer": max(source.width for source in run.sources),
            **creator,
        },
        "sourceset": {
            "modelId": model_id(run),
            "name": set_name,
            **common,
            "releaseName": release_name,
        },
        "source": {
            "id": source_id(run, layer),
            "modelId": model_id(run),
            "setName": set_name,
            "creatorId": CREATOR,
            "dataset": corpus_name(run),
            "num_prompts": run.n_segments,
            "num_tokens_in_prompt": SEGMENT_LENGTH,
            "visibility": "PUBLIC",
        },
    }


def feature_row(page: UnitPage) -> dict[str, Any]:
    """A unit: its vocabulary reading, how often it fires, and a histogram of its random records."""
    unit = page.unit
    counts, middles = random_histogram(unit.exemplars)
    return {
        **_unit_columns(page),
        "creatorId": CREATOR,
        "maxActApprox": _strongest(page),
        **({} if unit.stats is None else {"frac_nonzero": unit.stats.share_positive}),
        "pos_str": [page.tokens[i].text for i, _ in unit.promoted],
        "pos_values": [value for _, value in unit.promoted],
        "neg_str": [page.tokens[i].text for i, _ in unit.suppressed],
        "neg_values": [value for _, value in unit.suppressed],
        "freq_hist_data_bar_heights": counts,
        "freq_hist_data_bar_values": middles,
    }


def activation_rows(page: UnitPage) -> list[dict[str, Any]]:
    """The top and bottom records, in rank order. Top records have the mark of the strongest activations."""
    rows = []
    for x in page.unit.exemplars:
        if x.kind not in STRONGEST.values():
            continue
        values, is_top = x.activations.tolist(), x.kind == "top"
        rows.append(
            {
                "id": f"{_key(page)}-{x.kind}-{x.rank}",
                **_unit_columns(page),
                "creatorId": CREATOR,
                "tokens": [text.replace("\0", "\ufffd") for text in page.texts(x)],
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
    """The explanations with status ok, best first."""
    return [
        {
            "id": f"{_key(page)}-explanation-{e.id}",
            **_unit_columns(page),
            "authorId": CREATOR,
            "description": e.text,
            "typeName": f"{BY}_{e.explainer}",
            "explanationModelName": short_name(e.provenance.model),
        }
        for e in page.explanations
        if e.status == Status.OK
    ]


def _unit_columns(page: UnitPage) -> Mapping[str, str]:
    unit = page.unit.id
    return {
        "modelId": model_id(page.run),
        "layer": source_id(page.run, unit.layer),
        "index": str(unit.index),
    }


def _key(page: UnitPage) -> str:
    return "-".join(_unit_columns(page).values())


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
