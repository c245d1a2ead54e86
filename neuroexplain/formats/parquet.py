"""A run as a Hugging Face data set: a folder of Parquet files by table and layer, and a card.

Import restores the run. A table is a configuration of the data set (`load_dataset(FOLDER, "exemplars")`).
run.json holds the run, and the SHA-256 of each file. The ids that join tables are those of the exported
database; importing gives new ones.
"""

from __future__ import annotations

import json
from collections.abc import Generator, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from neuroexplain.as_json import run_json
from neuroexplain.errors import NeuroexplainError
from neuroexplain.evidence import TEXT_PARTS, TextPart
from neuroexplain.formats._parquet_card import Holdings, make_card, with_license, with_name
from neuroexplain.formats._parquet_files import CARD, list_files, sha256_of
from neuroexplain.formats._parquet_hard import hard_rows
from neuroexplain.formats._parquet_import import import_parquet
from neuroexplain.formats._parquet_layers import (
    TokenTexts,
    background_rows,
    exemplars_table,
    neurons_table,
    sample_rows,
)
from neuroexplain.formats._parquet_rows import explanation_row, prediction_row, score_row
from neuroexplain.formats._parquet_run import read_run
from neuroexplain.formats._parquet_tables import AT_ONCE, TABLES, VERSION, layer_name, write_rows
from neuroexplain.formats._whole_folder import whole_folder
from neuroexplain.formats.base import Format, ReadOptions
from neuroexplain.runs import Run
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
from neuroexplain.store.runs import count_explanations, count_scores, count_units, list_checks, load_prompt
from neuroexplain.store.score_summaries import summarize_scores
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
        _finish(store, run, partial)


def _write_collected(store: Store, run: Run, layer: int, folder: Path, vocabulary: TokenTexts) -> None:
    collected = load_collected_layer(store, run, layer)
    tables = {
        "neurons": neurons_table(collected, run.width(layer)),
        "exemplars": exemplars_table(store, run, collected, vocabulary),
    }
    for name, table in tables.items():
        pq.write_table(table, folder / name / f"{layer_name(layer)}.parquet", compression="zstd")
    write_rows(folder, "samples", layer_name(layer), sample_rows(collected))
    write_rows(folder, "hard", layer_name(layer), hard_rows(store, run, layer))
    if (background := collected.background) is not None:
        write_rows(folder, "background", layer_name(layer), background_rows(background, layer))
        segments = {"layer": layer, "segments": background.segments.tolist()}
        write_rows(folder, "background_segments", layer_name(layer), [segments])


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


def _finish(store: Store, run: Run, folder: Path) -> None:
    """Remove the folders of empty tables; write the card and run.json."""
    n_rows = count_rows(folder)
    for table in set(TABLES) - set(n_rows):
        (folder / table).rmdir()
    holdings = Holdings(
        n_rows, count_units(store, run.id), count_explanations(store, run.id), summarize_scores(store, run)
    )
    (folder / CARD).write_text(make_card(run, holdings), encoding="utf-8")
    hashes = {name: sha256_of(file) for name, file in list_files(folder).items()}
    stored = {"checks": [asdict(check) for check in list_checks(store, run.id)], "files": hashes}
    sources = [asdict(source) for source in run.sources]
    contents = {"format": VERSION, **run_json(run), "sources": sources, **stored}
    (folder / "run.json").write_text(json.dumps(contents, indent=1))


def count_rows(folder: Path) -> dict[str, int]:
    """The rows of each table that has a file, in the order of TABLES."""
    files = {table: list((folder / table).glob("*.parquet")) for table in TABLES}
    return {
        table: sum(pq.read_metadata(file).num_rows for file in its_files)
        for table, its_files in files.items()
        if its_files
    }


def check_is_export_of(store: Store, run: Run, folder: Path) -> None:
    """Raises NeuroexplainError unless the folder is an export of this run as it is now."""
    exported = read_run(folder).run
    if replace(exported, id=run.id) != run:
        raise NeuroexplainError(
            f"{folder} exists already and is an export of another run. Give the name of a new folder."
        )
    n_rows = count_rows(folder)
    counts = {
        "explanations": sum(n for *_, n in count_explanations(store, run.id)),
        "scores": count_scores(store, run.id),
    }
    for table, n in counts.items():
        if n_rows.get(table, 0) != n:
            raise NeuroexplainError(
                f"{folder} exists already, and the run has changed since: it holds {n_rows.get(table, 0):,} "
                f"{table}, the database {n:,}. Give the name of a new folder."
            )


def set_license(folder: Path, license_id: str) -> None:
    """Write the license into the card of an export."""
    card = folder / CARD
    card.write_text(with_license(card.read_text(encoding="utf-8"), license_id), encoding="utf-8")


def files_to_share(folder: Path, name: str) -> dict[str, Path | bytes]:
    """The files that an export wrote, by their path. The card names the data set."""
    names = [*(read_run(folder).hashes or ()), "run.json"]
    card = with_name((folder / CARD).read_text(encoding="utf-8"), name)
    return {**{path: folder / path for path in names}, CARD: card.encode()}


class Parquet(Format):
    name = "parquet"
    about = "a Hugging Face data set: all of a run"
    holds_whole_runs = True

    def write(self, store: Store, run: Run, units: Sequence[UnitId], folder: Path) -> Generator[Progress]:
        return export_parquet(store, run, folder)

    def read(self, store: Store, folder: Path, options: ReadOptions) -> Generator[Progress]:
        return import_parquet(store, folder)


FORMAT = Parquet()
