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
- An activation may name an interval (binMin, binMax) and the share of tokens in it (binContains, 0 to 1). Its
  pages list activations by interval, the strongest first. Sampled records have the intervals here.
"""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Collection, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neuroexplain.evidence import Exemplar, Status
from neuroexplain.formats._whole_folder import whole_folder
from neuroexplain.formats.base import Format
from neuroexplain.formatting import activation_histogram, corpus_name, group_by_strength, short_name
from neuroexplain.lookup import load_page
from neuroexplain.runs import Run, UnitPage
from neuroexplain.runtime.progress import Progress
from neuroexplain.sampling import scored_first
from neuroexplain.store.engine import Store
from neuroexplain.store.rows import chunks
from neuroexplain.units import CROP_LENGTH, SEGMENT_LENGTH, STRONGEST, Side, Source, UnitId

TABLES = ("features", "activations", "explanations")
BATCH = 512  # units in one file
BY = "neuroexplain"
CREATOR = "clkht01d40000jv08hvalcvly"  # a user that every new Neuronpedia has: rows need an existing user
# Names of published dictionaries that Neuronpedia has under names of its own, as of August 2026.
_GEMMA_SCOPE = re.compile(r"gemma-scope-\w+-(?:pt|it)-(res|mlp|att|transcoders)\b")
_LLAMA_SCOPE = re.compile(r"Llama3_1-8B-Base-L(?:\d+|X)R-\d+x")
NO_BIN = -1.0  # marks a record among the strongest, in place of an interval and the share of tokens in it


def export_neuronpedia(
    store: Store, run: Run, units: Sequence[UnitId], folder: Path, source_set: str | None = None
) -> Generator[Progress]:
    """Write the units' features, activations (top, bottom and sampled records), explanations with status ok.

    source_set: Neuronpedia's name for the layers' units; None: see `source_id`. The folder appears when it
    is complete. Raises NeuroexplainError if it exists or cannot be written.
    """
    done = 0
    explained_by: set[tuple[str, str]] = set()  # types and models of explanations
    with whole_folder(folder) as partial:
        for layer, layer_units in groupby(sorted(units), key=lambda unit: unit.layer):
            source_name = source_id(run, layer, source_set)
            source = partial / model_id(run) / source_name
            for table in TABLES:
                (source / table).mkdir(parents=True)
            for name, line in descriptions(run, layer, source_name).items():
                _write(source / f"{name}.jsonl", [line])
            for number, batch in enumerate(chunks(layer_units, BATCH)):
                rows: dict[str, list[dict[str, Any]]] = {table: [] for table in TABLES}
                for unit in batch:
                    page = load_page(store, run, unit)
                    rows["features"].append(feature_row(page, source_name))
                    rows["activations"] += activation_rows(page, source_name)
                    rows["explanations"] += explanation_rows(page, source_name)
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


def source_id(run: Run, layer: int, source_set: str | None = None) -> str:
    """Neuronpedia's id of one layer's units, which it also calls their layer: the layer and a set's name.

    The set is `source_set`, else that of Gemma Scope and Llama Scope, else one made of the dictionary's name;
    of units without a dictionary their kind, and of neurons what is read of them.
    """
    return f"{layer}-{source_set or _set_name(run, layer)}"


def find_set_name(source: Source) -> str | None:
    """The name under which Neuronpedia has a published dictionary; None if it is not known here."""
    name = (source.encoder or "").rpartition("?")[0]
    width = f"{source.width // 1000}k" if source.width < 1_000_000 else f"{source.width // 1_000_000}m"
    if (match := _GEMMA_SCOPE.search(name)) is not None:
        part = "transcoder" if match[1] == "transcoders" else match[1]
        return f"gemmascope-{part}-{width}"
    return f"llamascope-res-{width}" if _LLAMA_SCOPE.search(name) is not None else None


def descriptions(run: Run, layer: int, source_name: str) -> dict[str, dict[str, Any]]:
    """The rows that must exist before a layer's rows, by file."""
    name, set_name = short_name(run.subject), source_name.partition("-")[2]
    source = run.source(layer)
    noun = "MLP neurons" if run.kind == "mlp" else run.noun
    of_dictionary = f" ({source.dictionary})" if source is not None and source.dictionary else ""
    creator = {"creatorId": CREATOR, "visibility": "PUBLIC"}
    release_name = f"{model_id(run)}-{set_name}"
    common = {"description": f"{noun}{of_dictionary} of {name}", "urls": [], "creatorName": BY, **creator}
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
            "id": source_name,
            "modelId": model_id(run),
            "setName": set_name,
            "creatorId": CREATOR,
            "dataset": corpus_name(run),
            "num_prompts": run.n_segments,
            "num_tokens_in_prompt": SEGMENT_LENGTH,
            "visibility": "PUBLIC",
        },
    }


def feature_row(page: UnitPage, source_name: str) -> dict[str, Any]:
    """A unit: its vocabulary reading, density, histogram of activations, and nearest ones."""
    unit, source = page.unit, page.run.source(page.unit.id.layer)
    nearest: dict[str, Any] = {}
    if source is not None and source.encoder is not None:  # the same columns for all of a run
        nearest["topkCosSimIndices"] = [index for index, _ in unit.nearest]
        nearest["topkCosSimValues"] = [cosine for _, cosine in unit.nearest]
    counts, middles, _ = activation_histogram(unit)
    return {
        **_unit_columns(page, source_name),
        "creatorId": CREATOR,
        "maxActApprox": _strongest(page),
        **({} if unit.stats is None else {"frac_nonzero": unit.stats.share_positive}),
        "pos_str": [page.tokens[i].text for i, _ in unit.promoted],
        "pos_values": [value for _, value in unit.promoted],
        "neg_str": [page.tokens[i].text for i, _ in unit.suppressed],
        "neg_values": [value for _, value in unit.suppressed],
        "freq_hist_data_bar_heights": counts,
        "freq_hist_data_bar_values": middles,
        **nearest,
    }


def activation_rows(page: UnitPage, source_name: str) -> list[dict[str, Any]]:
    """The top and bottom records, in rank order, then the sampled ones by strength, each with its interval.

    Top records have the mark of the strongest activations in place of an interval.
    """
    rows = []
    for x in page.unit.exemplars:
        if x.kind in STRONGEST.values():
            mark = Interval(NO_BIN, _strongest(page), NO_BIN) if x.kind == "top" else Interval()
            rows.append(_activation_row(page, x, mark, source_name))
    for side in page.run.sides:
        for interval, records in sampled_intervals(page, side):
            rows += [_activation_row(page, x, interval, source_name) for x in records]
    return rows


@dataclass(frozen=True, slots=True)
class Interval:
    """A range of activations, and the share of the corpus' tokens in it."""

    low: float | None = None
    high: float | None = None
    share: float | None = None


def sampled_intervals(page: UnitPage, side: Side) -> list[tuple[Interval, tuple[Exemplar, ...]]]:
    """A side's sampled records in groups by strength, with intervals that join each other.

    An interval ends where the next stronger one begins, the strongest one at the side's strongest activation.
    Its share of tokens is estimated from the random and sampled records by the probabilities of their draws.
    """
    sign = -1.0 if side == "negative" else 1.0
    strengths, weights = _weighted_strengths(page, side)
    # Tokens after the last position of peaks can be stronger than the strongest record.
    ends = [sign * x.activation for x in page.unit.exemplars if x.kind != "random"]
    end = max([*ends, *strengths.tolist()], default=0.0)
    groups = group_by_strength([x for x in page.unit.exemplars if x.kind == "sampled" and x.side == side])
    intervals = []
    for number, group in enumerate(groups):
        begin = sign * group.records[-1].activation
        is_inside = (strengths >= begin) & ((strengths < end) | (number == 0))
        share = float(weights[is_inside].sum() / weights.sum()) if weights.sum() else None
        low, high = sorted((sign * begin, sign * end))
        intervals.append((Interval(low, high, share), group.records))
        end = begin
    return intervals


def _weighted_strengths(page: UnitPage, side: Side) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """How strongly a side fires at the tokens of scored halves, and how many segments each stands for.

    A segment that was drawn twice counts once.
    """
    drawn = {x.segment: x for x in page.unit.exemplars if (x.key, side) in page.probabilities}
    strengths, weights = [np.zeros(0)], [np.zeros(0)]
    for x in drawn.values():
        first = scored_first(page.run.seed, x.segment)
        values = x.activations[first : first + CROP_LENGTH].astype(np.float64)
        strengths.append(-values if side == "negative" else values)
        weights.append(np.full(len(values), 1 / page.probabilities[x.key, side]))
    return np.concatenate(strengths), np.concatenate(weights)


def _activation_row(page: UnitPage, x: Exemplar, interval: Interval, source_name: str) -> dict[str, Any]:
    columns = _unit_columns(page, source_name)
    values = x.activations.tolist()
    return {
        "id": f"{_key(columns)}-{x.kind}-{x.rank}",
        **columns,
        "creatorId": CREATOR,
        "tokens": [text.replace("\0", "\ufffd") for text in page.texts(x)],
        "values": values,
        "maxValue": max(values),
        "maxValueTokenIndex": values.index(max(values)),
        "minValue": min(values),
        "dataSource": x.kind,
        "binMin": interval.low,
        "binMax": interval.high,
        "binContains": interval.share,
    }


def explanation_rows(page: UnitPage, source_name: str) -> list[dict[str, Any]]:
    """The explanations with status ok, best first."""
    columns = _unit_columns(page, source_name)
    return [
        {
            "id": f"{_key(columns)}-explanation-{e.id}",
            **columns,
            "authorId": CREATOR,
            "description": e.text,
            "typeName": f"{BY}_{e.explainer}",
            "explanationModelName": short_name(e.provenance.model),
        }
        for e in page.explanations
        if e.status == Status.OK
    ]


def _unit_columns(page: UnitPage, source_name: str) -> Mapping[str, str]:
    return {"modelId": model_id(page.run), "layer": source_name, "index": str(page.unit.id.index)}


def _key(columns: Mapping[str, str]) -> str:
    return "-".join(columns.values())


def _strongest(page: UnitPage) -> float:
    return max((float(x.activations.max()) for x in page.unit.exemplars if x.kind == "top"), default=0.0)


def _set_name(run: Run, layer: int) -> str:
    source = run.source(layer)
    if run.kind == "mlp" or source is None or source.dictionary is None:
        return f"mlp-{run.activation}" if run.kind == "mlp" else run.kind
    own = re.sub(r"[^a-z0-9_-]+", "-", source.dictionary.lower()).strip("-_")
    # A layer stands before the set's name, so this one begins with a letter.
    return find_set_name(source) or f"{run.kind}-{own}".rstrip("-")[:100]


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
