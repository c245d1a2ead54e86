"""Merge the finished parts of one collection, each in a database of its own, into one run."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, replace
from typing import Any, TypeAlias

from neuroexplain.arrays import CollectedLayer
from neuroexplain.collecting.merge_layers import merge_layers
from neuroexplain.errors import NeuroexplainError
from neuroexplain.evidence import Segment
from neuroexplain.runs import Run
from neuroexplain.runtime.progress import Progress
from neuroexplain.runtime.tuning import processes_that_fit
from neuroexplain.runtime.worker import Worker
from neuroexplain.store.collected import load_collected_layer
from neuroexplain.store.engine import Store, open_store
from neuroexplain.store.runs import list_runs, load_run
from neuroexplain.store.save_collected import (
    create_run,
    delete_run,
    finish_run,
    save_collected_layer,
    save_segments,
    save_vocabulary,
)
from neuroexplain.store.units import list_segments, load_segments
from neuroexplain.store.vocabulary import load_vocabulary
from neuroexplain.units import RANDOM_START, RECORD_LENGTH, SEGMENT_LENGTH

Part = tuple[Store, Run]
Merging: TypeAlias = Generator[Progress, None, CollectedLayer]

# Fields of a run that must be equal in all parts.
SAME_FIELDS = (
    "subject",
    "subject_revision",
    "activation",
    "layers",
    "top_k",
    "n_random",
    "n_sampled",
    "n_background",
    "split_rule",
    "barred_ids",
    "seed",
    "tokenizer_sha256",
)
PART_OPTIONS = ("shard", "batch_size", "device", "dtype")  # options that may differ between parts
LARGE_MERGE = 4 << 30  # bytes of activations in memory, of all parts: some minutes of one process
# Memory at most, over that of one part's layer: two parts, both joined, the result, rows. Measured: 7.4.
LAYERS_IN_MEMORY = 8
SHAPES = ("dtype", "batch_size", "device", "kernels")  # what may change the last bits of activations


def run_merge(
    parts: Sequence[Part],
    into: Store,
    *,
    allow_mixed: bool = False,
    config: Mapping[str, Any] | None = None,
    n_processes: int | None = None,
) -> Generator[Progress]:
    """Join parts into a new run of `into`: records exactly, statistics to rounding, no explanations.

    config: the new run's, by default that of the parts with their numbers as its shard. n_processes: how many
    layers are merged at a time, each in a process of its own unless it is 1 (None: as many as pay). Raises
    NeuroexplainError, before anything is written, for parts of different collections, parts that overlap, and
    parts read in different shapes, dtypes or devices unless `allow_mixed`.
    """
    numbers = check_parts(parts, allow_mixed)
    fields = _merged_fields(parts, numbers)
    if config is not None:
        fields["config"] = dict(config)
    for run in list_runs(into):
        if run.status == "finished" and run.config == fields["config"]:
            yield Progress(
                "merging", note=f"Run {run.id} of {into.name} holds these parts already: nothing to do."
            )
            return
        if run.status == "running" and run.config == fields["config"]:
            delete_run(into, run.id)  # a merge that was cut off
    run_id = create_run(into, fields)
    first_store, first = parts[0]
    save_vocabulary(into, run_id, load_vocabulary(first_store, first.id))
    with into.bulk_writing():
        for store, run in parts:
            for segments in list_segments(store, run.id):
                save_segments(into, run_id, segments)
        n_processes = n_processes or _processes_that_pay(parts)
        with closing(_layers_merging(parts, first.layers, n_processes)) as merging:
            for layer_merging in merging:
                save_collected_layer(into, run_id, (yield from layer_merging))
    n_segments = sum(run.n_segments for _, run in parts)
    finish_run(
        into,
        run_id,
        n_segments=n_segments,
        n_documents=max(run.n_documents for _, run in parts),
        n_tokens=n_segments * SEGMENT_LENGTH,
        split_segments={
            split: sum(run.split_segments[split] for _, run in parts) for split in parts[0][1].split_segments
        },
    )


def _merged_fields(parts: Sequence[Part], numbers: list[int]) -> dict[str, Any]:
    """The fields of the new run. Parts of two dtypes give float32, which holds the values of both."""
    runs = [run for _, run in parts]
    first = runs[0]
    dtype = first.dtype if len({run.dtype for run in runs}) == 1 else "float32"
    n_parts = first.config["shard"]["of"]
    is_whole = numbers == list(range(1, n_parts + 1))
    shard = None if is_whole else {"parts": numbers, "of": n_parts}
    versions = {name: value for run in reversed(runs) for name, value in run.versions.items()}
    return {name: getattr(first, name) for name in (*SAME_FIELDS, "n_layers")} | {
        "layers": list(first.layers),
        "barred_ids": list(first.barred_ids),
        "dtype": dtype,
        "health": dict(first.health),  # of the first part's text
        "sources": [replace(source, dtype=dtype) for source in first.sources],
        "rectified": first.config.get("sign") == "both",
        "config": {**first.config, "shard": shard},
        "versions": versions,
    }


def _processes_that_pay(parts: Sequence[Part]) -> int:
    """As many as there are layers, processors and memory for; one where the parts are soon merged."""
    run = parts[0][1]
    n_records = run.top_k * len(run.sides) + run.n_random + run.n_sampled * len(run.sides)
    layer_bytes = max(map(run.width, run.layers)) * n_records * RECORD_LENGTH * 4
    if layer_bytes * len(run.layers) * len(parts) < LARGE_MERGE:
        return 1
    return processes_that_fit(len(run.layers), LAYERS_IN_MEMORY * layer_bytes)


def _layers_merging(parts: Sequence[Part], layers: Sequence[int], n_processes: int) -> Generator[Merging]:
    """What merges each layer, in order. At most n_processes are at work, or wait with their result."""
    if n_processes == 1:
        yield from (_merge_layer(parts, layers, layer) for layer in layers)
        return
    places = [(store.place, run.id) for store, run in parts]
    workers: deque[Worker] = deque()
    try:
        for layer in layers:
            workers.append(Worker(f"layer {layer}", _merge_layer_apart, places, layers, layer))
            if len(workers) == n_processes:
                yield workers[0].follow()
                workers.popleft()
        while workers:
            yield workers[0].follow()
            workers.popleft()
    finally:
        for worker in workers:
            worker.stop()


def _merge_layer_apart(places: Sequence[tuple[str, int]], layers: Sequence[int], layer: int) -> Merging:
    """`_merge_layer` in a process of its own, which opens the parts again."""
    with ExitStack() as stack:
        stores = [stack.enter_context(open_store(place, read_only=True)) for place, _ in places]
        parts = [(store, load_run(store, run_id)) for store, (_, run_id) in zip(stores, places, strict=True)]
        return (yield from _merge_layer(parts, layers, layer))


def _merge_layer(parts: Sequence[Part], layers: Sequence[int], layer: int) -> Merging:
    """Joins one layer of all parts, two at a time, and returns it. layers: all that are merged."""
    merged: CollectedLayer | None = None
    n_tokens, segments = 0, dict[int, Segment]()
    total, done = len(layers) * len(parts), layers.index(layer) * len(parts)
    for n_joined, (store, run) in enumerate(parts, 1):
        part = load_collected_layer(store, run, layer)
        segments |= load_segments(store, run.id, _segments_of(part))
        n_part_tokens = run.n_segments * (SEGMENT_LENGTH - RANDOM_START)
        merged = _join(merged, part, segments, run, (n_tokens, n_part_tokens)) if merged else part
        segments = {number: segments[number] for number in _segments_of(merged)}
        n_tokens += n_part_tokens
        del part  # before the next one is read: 380 MB for a layer of Llama-3-8B
        yield Progress("merging", done + n_joined, total, "layers of parts")
    assert merged is not None
    return merged


def _join(
    merged: CollectedLayer,
    part: CollectedLayer,
    segments: Mapping[int, Segment],
    run: Run,
    n_tokens: tuple[int, int],
) -> CollectedLayer:
    """What was merged before, joined with one more part. segments: of both; n_tokens: see `merge_layers`."""
    return merge_layers(
        merged,
        part,
        {number: segment.token_ids for number, segment in segments.items()},
        splits=None if run.split_rule == "ranks" else {n: x.split for n, x in segments.items()},
        top_k=run.top_k,
        n_random=run.n_random,
        n_sampled=run.n_sampled,
        n_background=run.n_background,
        seed=run.seed,
        n_tokens=n_tokens,
    )


def _segments_of(layer: CollectedLayer) -> set[int]:
    """The numbers of the segments that a layer's records come from."""
    samples = (sample.records for sample in layer.samples.values())
    kinds = (*layer.exemplars.values(), *samples)
    background = set() if layer.background is None else set(layer.background.segments.tolist())
    return background | {int(s) for x in kinds for s in x.segments[x.counts_mask()].tolist()}


def check_parts(parts: Sequence[Part], allow_mixed: bool) -> list[int]:
    """The parts' numbers in ascending order.

    Each part is compared with the first. Raises NeuroexplainError as `run_merge` says.
    """
    if len(parts) < 2:
        raise NeuroexplainError("There is nothing to merge: name two parts or more.")
    for store, run in parts:
        if not run.config.get("shard"):
            raise NeuroexplainError(
                f"Run {run.id} of {store.name} is no part of a collection: it was not collected with "
                "--shard, or is whole."
            )
    database_of: dict[int, str] = {}  # by the number of a part
    for part in parts:
        _check_same_collection(parts[0], part)
        store, run = part
        shard = run.config["shard"]
        for number in shard["parts"]:
            if number in database_of:
                raise NeuroexplainError(
                    f"Part {number} of {shard['of']} is in both {database_of[number]} and {store.name}."
                )
            database_of[number] = store.name
        if not allow_mixed:
            _check_same_shapes(parts[0][1], run)
    return sorted(database_of)


def _check_same_collection(first: Part, part: Part) -> None:
    """Raise NeuroexplainError if subject, options, weights or the number of parts differ."""
    (store_a, a), (store_b, b) = first, part
    if a.split_rule != b.split_rule:
        old = store_a if a.split_rule == "ranks" else store_b
        raise NeuroexplainError(
            f"{old.name} was collected by an earlier version, whose random records and splits are others: "
            "merge old parts with old ones, or collect this part again with this version."
        )
    different = _different_fields(a, b)
    if different:
        differences = "; ".join(
            f"{name}: {_value(a, name)} in {store_a.name}, {_value(b, name)} in {store_b.name}"
            for name in different
        )
        raise NeuroexplainError(f"These are parts of different collections. {differences}")
    if a.dtype == b.dtype and a.versions.get("weights") != b.versions.get("weights"):
        raise NeuroexplainError(
            f"{store_a.name} and {store_b.name} were read by models of the same name with other weights: "
            "they are parts of different collections."
        )
    n_a, n_b = a.config["shard"]["of"], b.config["shard"]["of"]
    if n_a != n_b:
        raise NeuroexplainError(f"One is a part of {n_a}, the other of {n_b}: they do not fit together.")


def _different_fields(a: Run, b: Run) -> list[str]:
    """The names of the fields, then of the options, in which two runs differ."""
    different = [name for name in SAME_FIELDS if getattr(a, name) != getattr(b, name)]
    if not different and not all(x.is_like(y) for x, y in zip(a.sources, b.sources, strict=True)):
        different.append("sources")
    options = {name: value for name, value in a.config.items() if name not in PART_OPTIONS}
    return different + [
        name for name, value in options.items() if b.config.get(name) != value and name not in different
    ]


def _check_same_shapes(a: Run, b: Run) -> None:
    mixed = [name for name in SHAPES if _shape(a, name) != _shape(b, name)]
    if mixed:
        differences = "; ".join(f"{name}: {_shape(a, name)} and {_shape(b, name)}" for name in mixed)
        raise NeuroexplainError(
            f"The parts were read differently, so their last bits may differ. {differences}.\n"
            "Join them all the same:  --allow-mixed"
        )


def _value(run: Run, name: str) -> Any:
    """A field of a run, or one of its options."""
    return asdict(run).get(name, run.config.get(name))


def _shape(run: Run, name: str) -> Any:
    if name == "kernels":
        return run.versions.get(name, "plain")  # older runs do not tell, and all were plain
    return run.dtype if name == "dtype" else run.versions.get(name)
