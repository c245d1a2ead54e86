"""The published Llama-3-8B neuron data (2024): three arrays, memory-mapped and read one layer at a time.

- index.npy [layer, neuron, k]: where the segment of a record begins in the token stream, in tokens.
- act.npy, float32, and token.npy, uint32, [layer, neuron, k, 64]: the last 64 of its 128 tokens, the peak at
  32.

There are no documents, random records or statistics. Segments begin anywhere and can overlap, so an imported
run has `segment_stride` 1, and a passage, which has one split, is 1,024 tokens of the stream. Records
with equal peaks are stored in the order of their places, so an export may have them in another order than
the import.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from neuroexplain import __version__
from neuroexplain.arrays import CollectedLayer, ExemplarArrays
from neuroexplain.errors import NeuroexplainError
from neuroexplain.evidence import SPLITS, Segment, VocabularyEntry
from neuroexplain.formats._whole_folder import whole_folder
from neuroexplain.formats.base import Format, ReadOptions
from neuroexplain.runs import Run
from neuroexplain.runtime.progress import Progress
from neuroexplain.sampling import NO_SPLIT, split_segments
from neuroexplain.sources.base import SOURCES
from neuroexplain.store.collected import load_collected_layer
from neuroexplain.store.engine import Store
from neuroexplain.store.runs import list_runs
from neuroexplain.store.save_collected import (
    create_run,
    finish_run,
    save_collected_layer,
    save_segments,
    save_vocabulary,
)
from neuroexplain.store.units import count_layer_units, load_segments
from neuroexplain.units import PEAK_INDEX, RECORD_LENGTH, SEGMENT_LENGTH, Source, UnitId

NAME = "llama3-neurons"
WINDOW_START = SEGMENT_LENGTH - RECORD_LENGTH  # a record's first token within its segment
SEED = 0  # of the splits
NEURONS_AT_ONCE = 2_048  # neurons whose dtype is checked at a time: bounds memory
UNUSED = -(1 << 62)  # in index, for a neuron with fewer records; -64 is the first possible place


@dataclass(frozen=True)
class Arrays:
    """The three arrays of a folder, memory-mapped."""

    index: NDArray[Any]  # [layer, neuron, k]
    act: NDArray[Any]  # [layer, neuron, k, 64]
    token: NDArray[Any]  # [layer, neuron, k, 64]

    @property
    def n_layers(self) -> int:
        return int(self.index.shape[0])

    @property
    def width(self) -> int:
        return int(self.index.shape[1])


def import_llama3_neurons(
    store: Store,
    folder: Path,
    layers: Sequence[int] | None,
    *,
    subject: str,
    tokenizer_sha256: str,
    vocabulary: Sequence[VocabularyEntry],
    activation: str = "act",
    n_tokens: int = 0,
) -> Generator[Progress]:
    """Store the arrays of a folder as a finished run. An import that was cut off goes on.

    The arrays do not tell whether they are of `act` or `post`, so the caller does. `layers` None means all.
    Raises NeuroexplainError if an array is missing, the arrays do not fit together, or they lack a layer.
    """
    activations = SOURCES.load("mlp").activations
    if activation not in activations:
        raise NeuroexplainError(f"There is no activation {activation!r}. There are {', '.join(activations)}.")
    arrays = _open_arrays(folder)
    layers = _checked_layers(folder, arrays, layers)
    config = {
        "format": NAME,
        "folder": str(folder.resolve()),
        "layers": list(layers),
        "segment_stride": 1,
        "shard": None,
    }
    fields = {"subject": subject, "tokenizer_sha256": tokenizer_sha256, "activation": activation}
    earlier = _earlier_runs(store, fields | {"config": config})
    if "finished" in earlier:
        note = f"Run {earlier['finished']} of {store.name} holds these layers already: nothing to do."
        yield Progress("importing", len(layers), len(layers), "layers", note=note)
        return
    run_id = earlier.get("running")
    if run_id is None:
        run_id = create_run(store, fields | {"config": config} | _array_fields(arrays, layers, activation))
        save_vocabulary(store, run_id, vocabulary)
    yield from _import_layers(store, run_id, arrays, layers)
    finish_run(store, run_id, n_segments=0, n_documents=0, n_tokens=n_tokens)


def _checked_layers(folder: Path, arrays: Arrays, layers: Sequence[int] | None) -> tuple[int, ...]:
    missing = [layer for layer in layers or () if layer >= arrays.n_layers]
    if missing:
        raise NeuroexplainError(
            f"{folder} has no layer {missing[0]}: it has {arrays.n_layers} layers, counted from 0."
        )
    return tuple(range(arrays.n_layers)) if layers is None else tuple(layers)


def _earlier_runs(store: Store, fields: Mapping[str, Any]) -> dict[str, int]:
    """The ids of runs with these fields, by status."""
    return {
        run.status: run.id
        for run in list_runs(store)
        if all(getattr(run, name) == value for name, value in fields.items())
    }


def _array_fields(arrays: Arrays, layers: Sequence[int], activation: str) -> dict[str, Any]:
    """The fields of a run that follow from the arrays."""
    dtype = "bfloat16" if all(_is_bfloat16(arrays.act[layer]) for layer in layers) else "float32"
    side: Literal["input", "output"] = "output" if activation == "act" else "input"
    return {
        "dtype": dtype,
        "layers": list(layers),
        "sources": [Source(layer, "mlp", None, side, arrays.width, dtype) for layer in layers],
        "n_layers": arrays.n_layers,
        "top_k": int(arrays.index.shape[2]),
        "n_random": 0,
        "seed": SEED,
        "split_rule": "passages",
        "versions": {"neuroexplain": __version__},
    }


def _import_layers(store: Store, run_id: int, arrays: Arrays, layers: Sequence[int]) -> Generator[Progress]:
    yield Progress("importing", 0, len(layers), "layers")
    with store.bulk_writing():
        for done, layer in enumerate(layers, 1):
            if count_layer_units(store, run_id, layer) < arrays.width:
                index, token = np.asarray(arrays.index[layer], np.int64), arrays.token[layer]
                # Built, and so checked, before anything of the layer is stored.
                collected = _collected_layer(layer, index, arrays.act[layer], token)
                save_segments(store, run_id, _segments(index, token))
                save_collected_layer(store, run_id, collected)
            yield Progress("importing", done, len(layers), "layers")


def export_llama3_neurons(store: Store, run: Run, folder: Path) -> Generator[Progress]:
    """Write a run's top records as the three arrays. The folder appears when it is complete.

    The layers are those of the run, in order. Raises NeuroexplainError if the folder exists or cannot be
    written, or if the run has no top records of MLP neurons.
    """
    shape = _shape_of(run)
    if run.activation != "act":
        command = f"neuroexplain import {NAME} {folder} --activation {run.activation}"
        note = f"The arrays do not tell that they are of {run.activation}. To import them again:  {command}"
        yield Progress("exporting", 0, len(run.layers), "layers", note=note)
    with whole_folder(folder) as partial:
        index = np.lib.format.open_memmap(partial / "index.npy", "w+", np.int64, shape)
        act = np.lib.format.open_memmap(partial / "act.npy", "w+", np.float32, (*shape, RECORD_LENGTH))
        token = np.lib.format.open_memmap(partial / "token.npy", "w+", np.uint32, (*shape, RECORD_LENGTH))
        for place, layer in enumerate(run.layers):
            _write_layer(store, run, layer, index[place], act[place], token[place])
            yield Progress("exporting", place + 1, len(run.layers), "layers")
        for array in (index, act, token):
            array.flush()


def _shape_of(run: Run) -> tuple[int, int, int]:
    """The shape of index.npy for a run. Raises NeuroexplainError if the format cannot hold the run."""
    widths = {source.width for source in run.sources}
    if run.kind != "mlp" or len(widths) != 1:
        raise NeuroexplainError(
            f"Run {run.id} holds {run.kind} units; {NAME} holds MLP neurons of one width. Try  export parquet"
        )
    if run.config.get("sign") == "negative":
        raise NeuroexplainError(
            f"Run {run.id} was collected with --sign negative: it has no top records, which {NAME} holds."
        )
    return len(run.layers), widths.pop(), run.top_k


def _write_layer(
    store: Store, run: Run, layer: int, index: NDArray[Any], act: NDArray[Any], token: NDArray[Any]
) -> None:
    """Fill a layer's part of the arrays: index [neuron, k], act and token [neuron, k, 64]."""
    top = load_collected_layer(store, run, layer).exemplars["top"]
    used = top.counts_mask()
    k = used.shape[1]
    segments = load_segments(store, run.id, set(top.segments[used].tolist()))
    places = top.segments.astype(np.int64) * run.segment_stride + top.starts - WINDOW_START
    index[:] = UNUSED
    index[:, :k] = np.where(used, places, UNUSED)
    act[:, :k] = np.where(used[:, :, None], top.activations, 0)
    for n, rank in zip(*used.nonzero(), strict=True):
        start = int(top.starts[n, rank])
        token[n, rank] = segments[int(top.segments[n, rank])].token_ids[start : start + RECORD_LENGTH]


def _open_arrays(folder: Path) -> Arrays:
    arrays = Arrays(*(_open_array(folder / f"{name}.npy") for name in ("index", "act", "token")))
    index, act, token = arrays.index, arrays.act, arrays.token
    if index.ndim != 3 or act.shape != (*index.shape, RECORD_LENGTH) or token.shape != act.shape:
        raise NeuroexplainError(
            f"The arrays of {folder} do not fit together: index {index.shape}, act {act.shape}, "
            f"token {token.shape}. Needed are [layer, neuron, k] and twice [layer, neuron, k, 64]."
        )
    if index.dtype.kind not in "iu" or act.dtype.kind != "f" or token.dtype.kind not in "iu":
        raise NeuroexplainError(
            f"The arrays of {folder} are of {index.dtype}, {act.dtype} and {token.dtype}. "
            "Needed are int, float32 and uint32."
        )
    return arrays


def _open_array(file: Path) -> NDArray[Any]:
    try:
        array: NDArray[Any] = np.load(file, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError as error:
        raise NeuroexplainError(
            f"There is no {file}: the published data are index.npy, act.npy and token.npy."
        ) from error
    except (OSError, ValueError) as error:
        raise NeuroexplainError(f"Cannot read {file}: {error}.") from error
    return array


def _segments(index: NDArray[np.int64], token: NDArray[Any]) -> Iterator[Segment]:
    """A layer's distinct segments in ascending order, each with its last 64 tokens: no others are known."""
    distinct, first = np.unique(index.reshape(-1), return_index=True)
    records = token.reshape(-1, RECORD_LENGTH)
    is_used = distinct != UNUSED
    places, first = distinct[is_used] + WINDOW_START, first[is_used]
    splits = split_segments(SEED, distinct[is_used], None, stride=1)
    for place, number, code in zip(places.tolist(), first.tolist(), splits.tolist(), strict=True):
        split = None if code == NO_SPLIT else SPLITS[code]
        yield Segment(place, np.asarray(records[number], np.uint32), split)


def _collected_layer(
    layer: int, index: NDArray[np.int64], act: NDArray[Any], token: NDArray[Any]
) -> CollectedLayer:
    """A layer with its records in the order of their peaks, and equal peaks in the order of their places.

    The number of a record's segment is the place of the record's own first token, since no earlier ones are
    known. Raises NeuroexplainError for values that cannot be stored.
    """
    activations = np.asarray(act, np.float32)
    used = index != UNUSED
    _check_values(layer, index[used], activations, token)
    peaks = np.where(used, activations[:, :, PEAK_INDEX], -np.inf)
    order = np.lexsort((index, -peaks), axis=1)
    index, peaks = np.take_along_axis(index, order, 1), np.take_along_axis(peaks, order, 1)
    peak_token_ids = np.asarray(token[:, :, PEAK_INDEX], np.uint32)
    top = ExemplarArrays(
        counts=used.sum(axis=1),
        segments=np.where(index == UNUSED, 0, index + WINDOW_START).astype(np.uint32),
        starts=np.zeros(index.shape, np.uint8),
        documents=np.full(index.shape, -1, np.int32),
        token_offsets=np.zeros(index.shape, np.int32),
        peaks=np.where(np.isfinite(peaks), peaks, 0).astype(np.float32),
        activations=np.take_along_axis(activations, order[:, :, None], 1),
        peak_token_ids=np.take_along_axis(peak_token_ids, order, 1),
    )
    return CollectedLayer(layer, {"top": top}, None, None)


def _check_values(
    layer: int, places: NDArray[np.int64], activations: NDArray[np.float32], token: NDArray[Any]
) -> None:
    if not np.isfinite(activations).all():
        raise NeuroexplainError(f"act.npy, layer {layer}, holds values that are not finite.")
    if token.size and (token.max() >= 1 << 24 or token.min() < 0):
        raise NeuroexplainError(f"token.npy, layer {layer}, holds token ids beyond 0 .. 2^24.")
    if places.size and (places.max() >= (1 << 32) - WINDOW_START or places.min() < -WINDOW_START):
        raise NeuroexplainError(f"index.npy, layer {layer}, holds places beyond 0 .. 2^32.")


def _is_bfloat16(act: NDArray[Any]) -> bool:
    """Whether bfloat16 holds all activations of a layer without rounding."""
    parts = (
        np.ascontiguousarray(act[first : first + NEURONS_AT_ONCE], np.float32)
        for first in range(0, len(act), NEURONS_AT_ONCE)
    )
    return not any(np.any(part.view(np.uint32) & 0xFFFF) for part in parts)


class Llama3Neurons(Format):
    name = NAME
    about = "index.npy, act.npy, token.npy: all top records of a run"
    holds_whole_runs = True

    def write(self, store: Store, run: Run, units: Sequence[UnitId], folder: Path) -> Generator[Progress]:
        return export_llama3_neurons(store, run, folder)

    def read(self, store: Store, folder: Path, options: ReadOptions) -> Generator[Progress]:
        from neuroexplain.subject.tokenizer import load_tokenizer, tokenizer_sha256, vocabulary_entries

        tokenizer = load_tokenizer(options.tokenizer, trust_remote_code=options.trust_remote_code)
        return import_llama3_neurons(
            store,
            folder,
            options.layers,
            subject=options.tokenizer,
            tokenizer_sha256=tokenizer_sha256(tokenizer),
            vocabulary=vocabulary_entries(tokenizer),
            activation=options.activation,
        )


FORMAT = Llama3Neurons()
