"""Merge: the finished parts of one collection, each in a database of its own -> one run."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from neuroexplain.arrays import CollectedLayer
from neuroexplain.collecting.merge_layers import merge_layers
from neuroexplain.errors import NeuroexplainError
from neuroexplain.runs import Run
from neuroexplain.runtime.progress import Progress
from neuroexplain.store.engine import Store
from neuroexplain.store.runs import list_runs
from neuroexplain.store.save_collected import (
    create_run,
    delete_run,
    finish_run,
    save_collected_layer,
    save_segments,
    save_vocabulary,
)
from neuroexplain.store.units import list_segments, load_collected_layer, load_segment_ids
from neuroexplain.store.vocabulary import load_vocabulary
from neuroexplain.units import RANDOM_START, SEGMENT_LENGTH

SAME = (
    "subject",
    "subject_revision",
    "activation",
    "layers",
    "top_k",
    "n_random",
    "seed",
    "tokenizer_sha256",
)
SHAPES = ("dtype", "batch_size", "device", "kernels")  # what may change the last bits of activations


def run_merge(
    parts: Sequence[tuple[Store, Run]],
    into: Store,
    *,
    allow_mixed: bool = False,
    config: Mapping[str, Any] | None = None,
) -> Generator[Progress]:
    """Join parts into a new run of `into`: exemplars exactly, statistics to rounding. Explanations stay where they are.

    config: the new run's, where it is not that of the parts. Raises NeuroexplainError, before anything is written, for parts of
    different collections, parts that overlap, and parts read in different shapes, dtypes or devices unless `allow_mixed`.
    """
    numbers = _check(parts, allow_mixed)
    first = parts[0][1]
    fields = {name: getattr(first, name) for name in (*SAME, "n_layers")} | {"layers": list(first.layers)}
    dtypes = {run.dtype for _, run in parts}
    fields["dtype"] = first.dtype if len(dtypes) == 1 else "float32"  # which holds the values of all
    fields["sources"] = [replace(source, dtype=fields["dtype"]) for source in first.sources]
    of = first.config["shard"]["of"]
    fields["rectified"] = first.config.get("sign") == "both"
    shard = None if numbers == list(range(1, of + 1)) else {"parts": numbers, "of": of}
    asked = {**first.config, "shard": shard} if config is None else dict(config)
    versions = {name: value for _, run in reversed(parts) for name, value in run.versions.items()}
    for run in list_runs(into):
        if run.status == "finished" and run.config == asked:
            yield Progress(
                "merging", note=f"Run {run.id} of {into.name} holds these parts already: nothing to do."
            )
            return
        if run.status == "running" and run.config == asked:
            delete_run(into, run.id)  # an earlier attempt that was cut off
    run_id = create_run(into, {**fields, "config": asked, "versions": versions})
    save_vocabulary(into, run_id, load_vocabulary(parts[0][0], first.id))
    with into.bulk_writing():
        for store, run in parts:
            for segments in list_segments(store, run.id):
                save_segments(into, run_id, segments)
        for done, layer in enumerate(first.layers, 1):
            save_collected_layer(into, run_id, _merged_layer(parts, into, run_id, layer))
            yield Progress("merging", done, len(first.layers), "layers")
    n_segments = sum(run.n_segments for _, run in parts)
    documents = max(run.n_documents for _, run in parts)
    finish_run(
        into, run_id, n_segments=n_segments, n_documents=documents, n_tokens=n_segments * SEGMENT_LENGTH
    )


def _merged_layer(parts: Sequence[tuple[Store, Run]], into: Store, run_id: int, layer: int) -> CollectedLayer:
    merged, n_tokens = None, 0
    for store, run in parts:
        found, n_found = (
            load_collected_layer(store, run, layer),
            run.n_segments * (SEGMENT_LENGTH - RANDOM_START),
        )
        if merged is None:
            merged, n_tokens = found, n_found
            continue
        kinds = (*merged.exemplars.values(), *found.exemplars.values())
        wanted = {int(s) for x in kinds for s in x.segments[x.counts_mask()].tolist()}
        ids, both = load_segment_ids(into, run_id, wanted), (n_tokens, n_found)
        merged = merge_layers(
            merged, found, ids, top_k=run.top_k, n_random=run.n_random, seed=run.seed, n_tokens=both
        )
        n_tokens += n_found
    assert merged is not None
    return merged


def _check(parts: Sequence[tuple[Store, Run]], allow_mixed: bool) -> list[int]:
    """The parts' numbers in ascending order. Each part is compared with the first."""
    if len(parts) < 2:
        raise NeuroexplainError("There is nothing to merge: name two parts or more.")
    for store, run in parts:
        if not run.config.get("shard"):
            raise NeuroexplainError(
                f"Run {run.id} of {store.name} is no part of a collection: it was not collected with --shard, or is whole."
            )
    found_in: dict[int, str] = {}  # the database of each part
    (store_a, a), shard_a = parts[0], parts[0][1].config["shard"]
    for store_b, b in parts:
        different = [name for name in SAME if getattr(a, name) != getattr(b, name)]
        if not different and not all(
            one.is_like(other) for one, other in zip(a.sources, b.sources, strict=True)
        ):
            different.append("sources")
        same = {
            key: value
            for key, value in a.config.items()
            if key not in ("shard", "batch_size", "device", "dtype")
        }
        different += [
            key for key, value in same.items() if b.config.get(key) != value and key not in different
        ]
        if different:
            shown = "; ".join(
                f"{name}: {_value(a, name)} in {store_a.name}, {_value(b, name)} in {store_b.name}"
                for name in different
            )
            raise NeuroexplainError(f"These are parts of different collections. {shown}")
        if a.dtype == b.dtype and a.versions.get("weights") != b.versions.get("weights"):
            raise NeuroexplainError(
                f"{store_a.name} and {store_b.name} were read by models of the same name with other weights: they are parts of "
                "different collections."
            )
        shard_b = b.config["shard"]
        if shard_a["of"] != shard_b["of"]:
            raise NeuroexplainError(
                f"One is a part of {shard_a['of']}, the other of {shard_b['of']}: they do not fit together."
            )
        for number in shard_b["parts"]:
            if number in found_in:
                raise NeuroexplainError(
                    f"Part {number} of {shard_a['of']} is in both {found_in[number]} and {store_b.name}."
                )
            found_in[number] = store_b.name
        mixed = [name for name in SHAPES if _shape(a, name) != _shape(b, name)]
        if mixed and not allow_mixed:
            shown = "; ".join(f"{name}: {_shape(a, name)} and {_shape(b, name)}" for name in mixed)
            raise NeuroexplainError(
                f"The parts were read differently, so their last bits may differ. {shown}.\n"
                "Join them all the same:  --allow-mixed"
            )
    return sorted(found_in)


def _value(run: Run, name: str) -> Any:
    return asdict(run).get(name, run.config.get(name))


def _shape(run: Run, name: str) -> Any:
    if name == "kernels":
        return run.versions.get(name, "plain")  # all were, before there was a choice
    return run.dtype if name == "dtype" else run.versions.get(name)
