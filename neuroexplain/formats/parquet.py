"""A run as a Hugging Face data set: a folder of Parquet files by table and layer, and a card.

Import restores the run. A table is a configuration of the data set (`load_dataset(FOLDER, "exemplars")`).
run.json holds the run, and the SHA-256 of each file. The ids that join tables are those of the exported
database; importing gives new ones.
"""

from __future__ import annotations

import json
from collections.abc import Generator, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from neuroexplain.as_json import run_json
from neuroexplain.evidence import TEXT_PARTS, TextPart
from neuroexplain.formats._parquet_files import list_files, sha256_of
from neuroexplain.formats._parquet_import import import_parquet
from neuroexplain.formats._parquet_layers import TokenTexts, exemplars_table, neurons_table, sample_rows
from neuroexplain.formats._parquet_rows import explanation_row, prediction_row, score_row
from neuroexplain.formats._parquet_tables import AT_ONCE, TABLES, VERSION, layer_name, write_rows
from neuroexplain.formats._whole_folder import whole_folder
from neuroexplain.formats.base import Format, ReadOptions
from neuroexplain.formatting import short_name
from neuroexplain.runs import Run, SimulatorCheck
from neuroexplain.runtime.progress import Progress
from neuroexplain.store.collected import load_collected_layer
from neuroexplain.store.engine import Store
from neuroexplain.store.explanations import (
    PREDICTION_TABLES,
    SCORE_TABLES,
    list_explanations,
    list_predictions,
    list_scores,
)
from neuroexplain.store.rows import chunks
from neuroexplain.store.runs import list_checks, load_prompt
from neuroexplain.store.units import list_segments
from neuroexplain.store.vocabulary import load_vocabulary
from neuroexplain.units import UnitId


def export_parquet(store: Store, run: Run, folder: Path) -> Generator[Progress]:
    """Write a run, one layer at a time. The folder appears when it is complete.

    Raises NeuroexplainError if it exists or cannot be written.
    """
    with whole_folder(folder) as partial:
        for table in TABLES:
            (partial / table).mkdir()
        entries = load_vocabulary(store, run.id)
        write_rows(partial, "vocabulary", "all", [asdict(entry) for entry in entries])
        vocabulary = TokenTexts(entries)
        for number, segments in enumerate(list_segments(store, run.id)):
            rows = [
                {"segment": s.segment, "token_ids": s.token_ids.tolist(), "split": s.split} for s in segments
            ]
            write_rows(partial, "segments", f"{number:05}", rows)
        prompts: set[str] = set()
        for done, layer in enumerate(run.layers, 1):
            _write_collected(store, run, layer, partial, vocabulary)
            prompts |= _write_explained(store, run, layer, partial)
            yield Progress("exporting", done, len(run.layers), "layers")
        write_rows(partial, "prompts", "all", (_prompt_row(store, sha256) for sha256 in sorted(prompts)))
        _finish(run, list_checks(store, run.id), partial)


def _write_collected(store: Store, run: Run, layer: int, folder: Path, vocabulary: TokenTexts) -> None:
    collected = load_collected_layer(store, run, layer)
    tables = {
        "neurons": neurons_table(collected, run.width(layer)),
        "exemplars": exemplars_table(store, run, collected, vocabulary),
    }
    for name, table in tables.items():
        pq.write_table(table, folder / name / f"{layer_name(layer)}.parquet", compression="zstd")
    write_rows(folder, "samples", layer_name(layer), sample_rows(collected))


def _write_explained(store: Store, run: Run, layer: int, folder: Path) -> set[str]:
    """Write a layer's explanations, and their predictions and scores in the order of explanations.

    Returns the hashes of their prompts.
    """
    name, prompts = layer_name(layer), set()

    def prediction_rows(part: TextPart) -> Iterator[dict[str, Any]]:
        for batch in chunks(ids, AT_ONCE):
            for prediction in list_predictions(store, batch, part):
                prompts.add(prediction.provenance.prompt_sha256)
                yield prediction_row(prediction)

    explanations = list_explanations(store, run.id, layer=layer)
    prompts |= {explanation.provenance.prompt_sha256 for explanation in explanations}
    write_rows(folder, "explanations", name, map(explanation_row, explanations))
    ids = sorted(explanation.id for explanation in explanations if explanation.id is not None)
    for part in TEXT_PARTS:
        write_rows(folder, PREDICTION_TABLES[part], name, prediction_rows(part))
        scores = (score for batch in chunks(ids, AT_ONCE) for score in list_scores(store, batch, part))
        write_rows(folder, SCORE_TABLES[part], name, map(score_row, scores))
    return {sha256 for sha256 in prompts if sha256 is not None}


def _prompt_row(store: Store, sha256: str) -> dict[str, str]:
    name, text = load_prompt(store, sha256)
    return {"sha256": sha256, "name": name, "text": text}


def _finish(run: Run, checks: Sequence[SimulatorCheck], folder: Path) -> None:
    """Remove the folders of empty tables; write the card and run.json."""
    tables = [table for table in TABLES if any((folder / table).iterdir())]
    for table in set(TABLES) - set(tables):
        (folder / table).rmdir()
    (folder / "README.md").write_text(_card(run, tables), encoding="utf-8")
    hashes = {name: sha256_of(file) for name, file in list_files(folder).items()}
    stored = {"checks": [asdict(check) for check in checks], "files": hashes}
    contents = {"format": VERSION, **run_json(run), **stored}
    (folder / "run.json").write_text(json.dumps(contents, indent=1))


def _card(run: Run, tables: Sequence[str]) -> str:
    configs = "\n".join(
        f"- config_name: {name}\n  data_files: {name}/*.parquet"
        + ("\n  default: true" if name == "exemplars" else "")
        for name in tables
    )
    subject = json.dumps(short_name(run.subject))
    return f"""---
pretty_name: {json.dumps("Neurons of " + short_name(run.subject))}
tags:
- interpretability
- neurons
configs:
{configs}
---

# Neurons of {subject}

Written by neuroexplain: {len(run.layers)} of {run.n_layers} layers, {run.kind} units (`{run.activation}`),
from {run.n_tokens:,} tokens. Each unit has its strongest records ({run.top_k} at most), {run.n_random} random
and {run.n_sampled} sampled ones at most, with one activation for each token, and its explanations,
predictions and scores, if any.

```python
from datasets import load_dataset
exemplars = load_dataset("FOLDER", "exemplars", split="train")
```

{_split_text(run)} The
text of the records comes from the corpus that the run read, under the licence of that corpus.
`neuroexplain import parquet FOLDER` restores the run.
"""


def _split_text(run: Run) -> str:
    """Which records may be shown to an explainer, and which are scored."""
    if run.split_rule == "ranks":
        return (
            "Records whose rank modulo 4 is 0 or 1 may be shown to an explainer; scores use those of rank 3 "
            "modulo 4."
        )
    text = (
        "The table `segments` has each segment's split. Records of `explain` may be shown to an explainer; "
        "scores use those of `report`."
    )
    if run.n_sampled:
        text += (
            f" {run.n_sampled} records of each side are sampled, with a probability proportional to their "
            "`size`; the table `samples` has the thresholds."
        )
    return text


class Parquet(Format):
    name = "parquet"
    about = "a Hugging Face data set: all of a run"
    holds_whole_runs = True

    def write(self, store: Store, run: Run, units: Sequence[UnitId], folder: Path) -> Generator[Progress]:
        return export_parquet(store, run, folder)

    def read(self, store: Store, folder: Path, options: ReadOptions) -> Generator[Progress]:
        return import_parquet(store, folder)


FORMAT = Parquet()
