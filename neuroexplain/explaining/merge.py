"""Merge what was explained and scored on several machines into one database that holds the run."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any

from neuroexplain.errors import NeuroexplainError
from neuroexplain.runs import Run
from neuroexplain.runtime.progress import Progress
from neuroexplain.store.copy_rows import copy_collection, holds_records
from neuroexplain.store.engine import Store
from neuroexplain.store.merge_explained import find_other_records, merge_explained
from neuroexplain.store.parts import is_same_run
from neuroexplain.store.runs import list_runs
from neuroexplain.store.save_collected import delete_run

Part = tuple[Store, Run]

# Fields in which copies of one collection do not differ.
SAME_FIELDS = (
    *("subject", "subject_revision", "dtype", "activation", "layers", "n_layers", "top_k", "n_random"),
    *("n_sampled", "seed", "tokenizer_sha256", "split_rule", "barred_ids", "split_segments", "rectified"),
    *("n_segments", "n_documents", "n_tokens"),
)
MACHINE_OPTIONS = ("batch_size", "device", "dtype")  # of a collection's options: records tell what counts


def run_merge_explained(parts: Sequence[Part], into: Store) -> Generator[Progress]:
    """Merge the explanations, predictions and scores of the parts into the run of `into` (`find_run`).

    `into` gets the run with its records from the first part that has them, unless it holds it. Merging a part
    again changes nothing. Raises NeuroexplainError, before anything is written, if the parts are of different
    collections, or if the records of an explained unit differ.
    """
    for part in parts[1:]:
        _check_same_collection(parts[0], part)
    target = find_run(parts, into)
    if target is None:
        _drop_cut_off_copies(parts, into)
    whole = next((part for part in parts if holds_records(part[0], part[1].id)), None)
    compared = target or whole
    if compared is None:
        raise NeuroexplainError(
            f"{parts[0][0].name} is a part without records, and {into.name} does not hold its run. "
            "Name the database that was explained from:  --into FILE"
        )
    yield Progress("comparing records")
    for part in parts:
        _check_records(part, compared)
    with into.bulk_writing():
        if target is None:
            for done, n in copy_collection(*compared, into):
                yield Progress("copying", done, n, "tables")
            target = into, list_runs(into)[-1]
        for store, run in parts:
            if not _is_same_file(store, into):
                yield from _merge_part(store, run, into, target[1].id)


def _merge_part(store: Store, run: Run, into: Store, run_id: int) -> Generator[Progress]:
    n_different = 0
    for merged in merge_explained(store, run.id, into, run_id):
        n_different = merged.n_different
        yield Progress(f"merging {store.name}", merged.n_done, merged.n_units, "units")
    if n_different:
        note = f"{n_different:,} explanations of {store.name} read otherwise in {into.name}, which stay."
        yield Progress(f"merging {store.name}", note=note)


def find_run(parts: Sequence[Part], into: Store) -> Part | None:
    """The run of `into` with records that the parts belong to; None if there is none."""
    for run in list_runs(into):
        is_same = run.status == "finished" and not _differences(parts[0][1], run)
        if is_same and holds_records(into, run.id):
            return into, run
    return None


def _drop_cut_off_copies(parts: Sequence[Part], into: Store) -> None:
    for run in list_runs(into):
        if run.status == "running" and not _differences(parts[0][1], run):
            delete_run(into, run.id)


def _check_same_collection(first: Part, part: Part) -> None:
    (store_a, a), (store_b, b) = first, part
    differences = _differences(a, b)
    if differences:
        text = "; ".join(
            f"{name}: {value_a} in {store_a.name}, {value_b} in {store_b.name}"
            for name, (value_a, value_b) in differences.items()
        )
        raise NeuroexplainError(f"These are explanations of different collections. {text}")


def _differences(a: Run, b: Run) -> dict[str, tuple[Any, Any]]:
    """What two runs of one collection cannot differ in, by name."""
    pairs = {name: (getattr(a, name), getattr(b, name)) for name in SAME_FIELDS}
    for name in dict.fromkeys((*a.config, *b.config)):
        if name not in MACHINE_OPTIONS:
            pairs.setdefault(name, (a.config.get(name), b.config.get(name)))
    pairs["weights"] = a.versions.get("weights"), b.versions.get("weights")
    pairs["sources"] = a.sources, b.sources
    return {name: (x, y) for name, (x, y) in pairs.items() if x != y}


def _check_records(part: Part, compared: Part) -> None:
    """Raise NeuroexplainError unless the part was explained from the records of `compared`."""
    (store, run), (whole_store, whole) = part, compared
    if _is_same_file(store, whole_store):
        return
    if not holds_records(store, run.id):
        if not is_same_run(run, whole):
            raise NeuroexplainError(
                f"{store.name} was explained from a collection of {run.started_at}, and {whole_store.name} "
                f"holds one of {whole.started_at}. Merge it into the database that it was explained from."
            )
        return
    unit = next(find_other_records(store, run.id, whole_store, whole.id), None)
    if unit is not None:
        raise NeuroexplainError(
            f"{store.name} and {whole_store.name} hold different records of unit {unit}: what was explained "
            "from one says nothing of the other.\n"
            "Explain copies of one database, or let parts read it:  "
            "neuroexplain explain --shard 1/2 --part part1.db"
        )


def _is_same_file(a: Store, b: Store) -> bool:
    return a.file is not None and b.file is not None and a.file.resolve() == b.file.resolve()
