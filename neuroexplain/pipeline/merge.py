"""Merge: the finished parts of one collection, each in a database of its own -> one run."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import asdict
from typing import Any

from neuroexplain.errors import NeuroexplainError
from neuroexplain.pipeline.progress import Progress
from neuroexplain.store.engine import Store
from neuroexplain.store.read import list_runs, list_segments, load_collected_layer, load_segment_ids, load_vocabulary
from neuroexplain.store.write import create_run, delete_run, finish_run, save_collected_layer, save_segments, save_vocabulary
from neuroexplain.subject.merge import merge_layers
from neuroexplain.types import RANDOM_START, SEGMENT_LENGTH, Run

SAME = ("subject", "subject_revision", "activation", "layers", "d_mlp", "top_k", "n_random", "seed", "tokenizer_sha256")
SHAPES = ("dtype", "batch_size", "device")  # what may change the last bits of activations


def run_merge(one: tuple[Store, Run], other: tuple[Store, Run], into: Store, *, allow_mixed: bool) -> Generator[Progress]:
    """Join two parts into a new run of `into`: exemplars exactly, statistics to rounding. Explanations stay where they are.

    Raises NeuroexplainError, before anything is written, for parts of different collections, parts that overlap, and parts
    read in different shapes, dtypes or devices unless `allow_mixed`.
    """
    parts = _check(one, other, allow_mixed)
    (store_a, a), (_, b) = one, other
    fields = {name: getattr(a, name) for name in (*SAME, "dtype", "n_layers")} | {"layers": list(a.layers)}
    of = a.config["shard"]["of"]
    whole = parts == list(range(1, of + 1))
    config = {**a.config, "shard": None if whole else {"parts": parts, "of": of}}
    versions = {**b.versions, **a.versions}
    for run in list_runs(into):
        if run.status == "running" and run.config == config:
            delete_run(into, run.id)  # an earlier attempt that was cut off
    run_id = create_run(into, {**fields, "config": config, "versions": versions})
    save_vocabulary(into, run_id, load_vocabulary(store_a, a.id))
    for store, run in (one, other):
        for segments in list_segments(store, run.id):
            save_segments(into, run_id, segments)
    for done, layer in enumerate(a.layers, 1):
        first, second = load_collected_layer(store_a, a, layer), load_collected_layer(other[0], b, layer)
        kinds = (*first.exemplars.values(), *second.exemplars.values())
        wanted = {int(s) for x in kinds for s in x.segments[x.counts_mask()].tolist()}
        merged = merge_layers(
            first,
            second,
            load_segment_ids(into, run_id, wanted),
            top_k=a.top_k,
            n_random=a.n_random,
            seed=a.seed,
            n_tokens=(a.n_segments * (SEGMENT_LENGTH - RANDOM_START), b.n_segments * (SEGMENT_LENGTH - RANDOM_START)),
        )
        save_collected_layer(into, run_id, merged)
        yield Progress("merging", done, len(a.layers), "layers")
    n_segments = a.n_segments + b.n_segments
    documents = max(a.n_documents, b.n_documents)
    finish_run(into, run_id, n_segments=n_segments, n_documents=documents, n_tokens=n_segments * SEGMENT_LENGTH)


def _check(one: tuple[Store, Run], other: tuple[Store, Run], allow_mixed: bool) -> list[int]:
    (store_a, a), (store_b, b) = one, other
    for store, run in (one, other):
        if not run.config.get("shard"):
            raise NeuroexplainError(
                f"Run {run.id} of {store.name} is no part of a collection: it was not collected with --shard, or is whole."
            )
    different = [name for name in SAME if getattr(a, name) != getattr(b, name)]
    same = {key: value for key, value in a.config.items() if key not in ("shard", "batch_size", "device", "dtype")}
    different += [key for key, value in same.items() if b.config.get(key) != value and key not in different]
    if different:
        shown = "; ".join(
            f"{name}: {_value(a, name)} in {store_a.name}, {_value(b, name)} in {store_b.name}" for name in different
        )
        raise NeuroexplainError(f"These are parts of different collections. {shown}")
    parts_a, parts_b = a.config["shard"], b.config["shard"]
    if parts_a["of"] != parts_b["of"]:
        raise NeuroexplainError(f"One is a part of {parts_a['of']}, the other of {parts_b['of']}: they do not fit together.")
    twice = sorted(set(parts_a["parts"]) & set(parts_b["parts"]))
    if twice:
        raise NeuroexplainError(f"Part {twice[0]} of {parts_a['of']} is in both {store_a.name} and {store_b.name}.")
    mixed = [name for name in SHAPES if _shape(a, name) != _shape(b, name)]
    if mixed and not allow_mixed:
        shown = "; ".join(f"{name}: {_shape(a, name)} and {_shape(b, name)}" for name in mixed)
        raise NeuroexplainError(
            f"The parts were read differently, so their last bits may differ. {shown}.\nJoin them all the same:  --allow-mixed"
        )
    return sorted(parts_a["parts"] + parts_b["parts"])


def _value(run: Run, name: str) -> Any:
    return asdict(run).get(name, run.config.get(name))


def _shape(run: Run, name: str) -> Any:
    return run.dtype if name == "dtype" else run.versions.get(name)
