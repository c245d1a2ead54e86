"""A run as a Hugging Face data set folder: Parquet files by table and layer, and a card. Import restores all of it.

One configuration a table (`load_dataset(FOLDER, "exemplars")`); run.json holds the run itself. Ids that join tables are those
of the database that was exported; importing gives new ones.
"""

from __future__ import annotations

import json
from collections.abc import Generator, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from neuroexplain.formats._parquet_files import list_files, sha256_of
from neuroexplain.formats._parquet_import import import_parquet
from neuroexplain.formats._parquet_layers import exemplars_table, neurons_table, vocabulary_texts
from neuroexplain.formats._parquet_rows import explanation_row, prediction_row, score_row
from neuroexplain.formats._parquet_tables import AT_ONCE, TABLES, VERSION, write_rows
from neuroexplain.formats._whole_folder import whole_folder
from neuroexplain.formats.base import Format, ReadOptions
from neuroexplain.formatting import run_json, short_name
from neuroexplain.runs import Run
from neuroexplain.runtime.progress import Progress
from neuroexplain.store.engine import Store
from neuroexplain.store.explanations import list_explanations, list_predictions, list_scores
from neuroexplain.store.runs import load_prompt
from neuroexplain.store.units import list_segments, load_collected_layer
from neuroexplain.store.vocabulary import load_vocabulary
from neuroexplain.units import UnitId


def export_parquet(store: Store, run: Run, folder: Path) -> Generator[Progress]:
    """Write a run, a layer at a time. The folder appears when it is whole."""
    with whole_folder(folder) as partial:
        for name in TABLES:
            (partial / name).mkdir()
        entries = load_vocabulary(store, run.id)
        write_rows(partial, "vocabulary", "all", [asdict(entry) for entry in entries])
        texts = vocabulary_texts(entries)
        for number, segments in enumerate(list_segments(store, run.id)):
            rows = [{"segment": s.segment, "token_ids": s.token_ids.tolist()} for s in segments]
            write_rows(partial, "segments", f"{number:05}", rows)
        prompts: set[str | None] = set()
        for done, layer in enumerate(run.layers, 1):
            name = f"layer-{layer:03}"
            found = load_collected_layer(store, run, layer)
            for table, made in (
                ("neurons", neurons_table(found, run.width(layer))),
                ("exemplars", exemplars_table(store, run, found, texts)),
            ):
                pq.write_table(made, partial / table / f"{name}.parquet", compression="zstd")
            explanations = list_explanations(store, run.id, layer=layer)
            write_rows(partial, "explanations", name, map(explanation_row, explanations))
            prompts |= {e.provenance.prompt_sha256 for e in explanations}
            ids = [e.id for e in explanations if e.id is not None]
            write_rows(partial, "predictions", name, _prediction_rows(store, ids, prompts))
            write_rows(
                partial,
                "scores",
                name,
                (score_row(one) for some in _slices(ids) for one in list_scores(store, some)),
            )
            yield Progress("exporting", done, len(run.layers), "layers")
        texts_of = ((sha256, *load_prompt(store, sha256)) for sha256 in sorted(filter(None, prompts)))
        write_rows(
            partial,
            "prompts",
            "all",
            ({"sha256": sha256, "name": name, "text": text} for sha256, name, text in texts_of),
        )
        held = [name for name in TABLES if any((partial / name).iterdir())]
        for name in set(TABLES) - set(held):
            (partial / name).rmdir()
        (partial / "README.md").write_text(_card(run, held), encoding="utf-8")
        told = {
            "format": VERSION,
            **run_json(run),
            "files": {name: sha256_of(file) for name, file in list_files(partial).items()},
        }
        (partial / "run.json").write_text(json.dumps(told, indent=1))


def _prediction_rows(
    store: Store, explanation_ids: Sequence[int], prompts: set[str | None]
) -> Iterator[dict[str, Any]]:
    """The predictions of explanations, some at a time; their prompts are added to `prompts`."""
    for some in _slices(explanation_ids):
        for one in list_predictions(store, some):
            prompts.add(one.provenance.prompt_sha256)
            yield prediction_row(one)


def _slices(ids: Sequence[int]) -> Iterator[Sequence[int]]:
    """Ids in ascending order, some at a time: so are the rows that belong to them."""
    ids = sorted(ids)
    return (ids[at : at + AT_ONCE] for at in range(0, len(ids), AT_ONCE))


def _card(run: Run, held: Sequence[str]) -> str:
    configs = "\n".join(
        f"- config_name: {name}\n  data_files: {name}/*.parquet"
        + ("\n  default: true" if name == "exemplars" else "")
        for name in held
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

Written by neuroexplain: {len(run.layers)} of {run.n_layers} layers, {run.kind} units (`{run.activation}`), from
{run.n_tokens:,} tokens. Each unit's strongest records ({run.top_k} at most) and {run.n_random} random ones, with one
activation a token; explanations, predictions and scores where there are any.

```python
from datasets import load_dataset
exemplars = load_dataset("FOLDER", "exemplars", split="train")
```

Records whose rank modulo 4 is 0 or 1 may be shown to an explainer; scores use those of rank 3 modulo 4. The text of the records
comes from the corpus that the run read, under that corpus's licence. `neuroexplain import parquet FOLDER` restores the run.
"""


class Parquet(Format):
    name = "parquet"
    about = "a Hugging Face data set: all of a run"
    holds_whole_runs = True

    def write(self, store: Store, run: Run, units: Sequence[UnitId], folder: Path) -> Generator[Progress]:
        return export_parquet(store, run, folder)

    def read(self, store: Store, folder: Path, options: ReadOptions) -> Generator[Progress]:
        return import_parquet(store, folder)


FORMAT = Parquet()
