"""The published Llama-3-8B neuron data (2024): index.npy, act.npy, token.npy, memory-mapped, a layer at a time.

index [layer, neuron, k]: the first token, in the token stream, of the 128 that were read; act float32 and token uint32
[layer, neuron, k, 64]: the last 64 of them, the peak at 32. No documents, no random records, no statistics. The segments
begin anywhere, so they can overlap: a run of them has `segment_stride` 1, and records of overlapping segments never stand on
both sides of a split. Ties are put into our order (by place), so what comes out may differ in the order of equal peaks.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from neuroexplain import __version__
from neuroexplain.arrays import CollectedLayer, ExemplarArrays
from neuroexplain.errors import NeuroexplainError
from neuroexplain.evidence import Segment, VocabularyEntry
from neuroexplain.formats._whole_folder import whole_folder
from neuroexplain.formats.base import Format, ReadOptions
from neuroexplain.runs import Run
from neuroexplain.runtime.progress import Progress
from neuroexplain.sources.base import SOURCES
from neuroexplain.store.engine import Store
from neuroexplain.store.runs import list_runs
from neuroexplain.store.save_collected import (
    create_run,
    finish_run,
    save_collected_layer,
    save_segments,
    save_vocabulary,
)
from neuroexplain.store.units import count_layer_units, load_collected_layer, load_segment_ids
from neuroexplain.units import PEAK_INDEX, RECORD_LENGTH, SEGMENT_LENGTH, Source, UnitId

NAME = "llama3-neurons"
WINDOW_START = SEGMENT_LENGTH - RECORD_LENGTH  # a record's first token in its segment
NEURONS_AT_ONCE = 2_048  # bounds memory
UNUSED = -(1 << 62)  # in index, where a neuron has fewer records; -64 is the stream's first window


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
    """Store the arrays of a folder as a finished run. An import that was cut off goes on with the layers that are missing.

    The arrays do not say whether they are of `act` or `post`. Raises NeuroexplainError where arrays are missing, do not fit
    together or lack a layer.
    """
    if activation not in (known := SOURCES.load("mlp").activations):
        raise NeuroexplainError(f"There is no activation {activation!r}. There are {', '.join(known)}.")
    index, act, token = _open_arrays(folder)
    n_layers, d_mlp, k = index.shape
    wanted = tuple(range(n_layers)) if layers is None else tuple(layers)
    wrong = [layer for layer in wanted if layer >= n_layers]
    if wrong:
        raise NeuroexplainError(f"{folder} has no layer {wrong[0]}: it has {n_layers}, counted from 0.")
    config = {
        "format": NAME,
        "folder": str(folder.resolve()),
        "layers": list(wanted),
        "segment_stride": 1,
        "shard": None,
    }
    whose = subject, tokenizer_sha256, activation
    same = (
        run
        for run in list_runs(store)
        if run.config == config and (run.subject, run.tokenizer_sha256, run.activation) == whose
    )
    earlier = {run.status: run.id for run in same}
    if "finished" in earlier:
        note = f"Run {earlier['finished']} of {store.name} holds these layers already: nothing to do."
        yield Progress("importing", len(wanted), len(wanted), "layers", note=note)
        return
    run_id = earlier.get("running")
    if run_id is None:
        dtype = "bfloat16" if all(_is_bfloat16(act[layer]) for layer in wanted) else "float32"
        fields: dict[str, Any] = {
            "subject": subject,
            "dtype": dtype,
            "activation": activation,
            "layers": list(wanted),
        }
        side: Literal["input", "output"] = "output" if activation == "act" else "input"
        fields |= {"sources": [Source(layer, "mlp", None, side, d_mlp, dtype) for layer in wanted]}
        fields |= {
            "n_layers": n_layers,
            "top_k": k,
            "n_random": 0,
            "seed": 0,
            "tokenizer_sha256": tokenizer_sha256,
        }
        run_id = create_run(store, {**fields, "config": config, "versions": {"neuroexplain": __version__}})
        save_vocabulary(store, run_id, vocabulary)
    yield Progress("importing", 0, len(wanted), "layers")
    with store.bulk_writing():
        for done, layer in enumerate(wanted, 1):
            if count_layer_units(store, run_id, layer) < d_mlp:
                places = np.asarray(index[layer], np.int64)
                found = _layer(
                    layer, places, act[layer], token[layer]
                )  # checked before anything of it is stored
                save_segments(store, run_id, _segments(places, token[layer]))
                save_collected_layer(store, run_id, found)
            yield Progress("importing", done, len(wanted), "layers")
    finish_run(store, run_id, n_segments=0, n_documents=0, n_tokens=n_tokens)


def export_llama3_neurons(store: Store, run: Run, folder: Path) -> Generator[Progress]:
    """Write a run's top records as the three arrays; the folder appears when they are whole.

    The layers are those of the run, in order. Raises NeuroexplainError where the folder exists or cannot be written.
    """
    widths = {source.width for source in run.sources}
    if run.kind != "mlp" or len(widths) != 1:
        raise NeuroexplainError(
            f"Run {run.id} holds {run.kind} units; {NAME} is made of MLP neurons. Try  export parquet"
        )
    shape = (len(run.layers), *widths, run.top_k)
    if run.config.get("sign") == "negative":
        raise NeuroexplainError(
            f"Run {run.id} was collected with --sign negative: it has no top records, which {NAME} is made of."
        )
    if run.activation != "act":
        again = f"to read them again:  neuroexplain import {NAME} {folder} --activation {run.activation}"
        note = f"The arrays do not say that they are of {run.activation}; {again}"
        yield Progress("exporting", 0, len(run.layers), "layers", note=note)
    with whole_folder(folder) as partial:
        index = np.lib.format.open_memmap(partial / "index.npy", "w+", np.int64, shape)
        act = np.lib.format.open_memmap(partial / "act.npy", "w+", np.float32, (*shape, RECORD_LENGTH))
        token = np.lib.format.open_memmap(partial / "token.npy", "w+", np.uint32, (*shape, RECORD_LENGTH))
        for place, layer in enumerate(run.layers):
            top = load_collected_layer(store, run, layer).exemplars["top"]
            used = top.counts_mask()
            k = used.shape[1]
            ids = load_segment_ids(store, run.id, set(top.segments[used].tolist()))
            starts = top.segments.astype(np.int64) * run.segment_stride + top.starts - WINDOW_START
            index[place] = UNUSED
            index[place, :, :k] = np.where(used, starts, UNUSED)
            act[place, :, :k] = np.where(used[:, :, None], top.activations, 0)
            for n, r in zip(*used.nonzero(), strict=True):
                first = int(top.starts[n, r])
                token[place, n, r] = ids[int(top.segments[n, r])][first : first + RECORD_LENGTH]
            yield Progress("exporting", place + 1, len(run.layers), "layers")
        for array in (index, act, token):
            array.flush()


def _open_arrays(folder: Path) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    found = []
    for name in ("index", "act", "token"):
        file = folder / f"{name}.npy"
        try:
            found.append(np.load(file, mmap_mode="r", allow_pickle=False))
        except FileNotFoundError as error:
            raise NeuroexplainError(
                f"There is no {file}: the published data are index.npy, act.npy and token.npy."
            ) from error
        except (OSError, ValueError) as error:
            raise NeuroexplainError(f"Cannot read {file}: {error}.") from error
    index, act, token = found
    if index.ndim != 3 or act.shape != (*index.shape, RECORD_LENGTH) or token.shape != act.shape:
        raise NeuroexplainError(
            f"The arrays of {folder} do not fit together: index {index.shape}, act {act.shape}, token {token.shape}; "
            "wanted are [layer, neuron, k] and twice [layer, neuron, k, 64]."
        )
    kinds = (index.dtype.kind in "iu", act.dtype.kind == "f", token.dtype.kind in "iu")
    if not all(kinds):
        raise NeuroexplainError(
            f"{folder} holds {index.dtype}, {act.dtype} and {token.dtype}; wanted are int, float32, uint32."
        )
    return index, act, token


def _segments(index: NDArray[np.int64], token: NDArray[Any]) -> Iterator[Segment]:
    """Each distinct segment's 64 tokens that are known, in ascending order: as the store keeps them."""
    distinct, first = np.unique(index.reshape(-1), return_index=True)
    flat = token.reshape(-1, RECORD_LENGTH)
    places = zip(distinct.tolist(), first.tolist(), strict=True)
    return (
        Segment(start + WINDOW_START, np.asarray(flat[place], np.uint32))
        for start, place in places
        if start != UNUSED
    )


def _layer(layer: int, index: NDArray[np.int64], act: NDArray[Any], token: NDArray[Any]) -> CollectedLayer:
    activations = np.asarray(act, np.float32)
    if not np.isfinite(activations).all():
        raise NeuroexplainError(f"act.npy, layer {layer}, holds values that are not finite.")
    if token.size and (token.max() >= 1 << 24 or token.min() < 0):
        raise NeuroexplainError(f"token.npy, layer {layer}, holds token ids beyond 0 .. 2^24.")
    used = index != UNUSED
    places = index[used]
    if places.size and (places.max() >= (1 << 32) - WINDOW_START or places.min() < -WINDOW_START):
        raise NeuroexplainError(f"index.npy, layer {layer}, holds places beyond 0 .. 2^32.")
    peaks = np.where(used, activations[:, :, PEAK_INDEX], -np.inf)
    order = np.lexsort((index, -peaks), axis=1)  # by activation, ties by place
    index, peaks = np.take_along_axis(index, order, 1), np.take_along_axis(peaks, order, 1)
    windows = np.where(
        index == UNUSED, 0, index + WINDOW_START
    )  # the segment numbers of the run: where each record begins
    counts = used.sum(axis=1)
    shape = index.shape
    top = ExemplarArrays(
        counts=counts,
        segments=windows.astype(np.uint32),
        starts=np.zeros(shape, np.uint8),
        documents=np.full(shape, -1, np.int32),
        token_offsets=np.zeros(shape, np.int32),
        peaks=np.where(np.isfinite(peaks), peaks, 0).astype(np.float32),
        activations=np.take_along_axis(activations, order[:, :, None], 1),
        peak_token_ids=np.take_along_axis(np.asarray(token[:, :, PEAK_INDEX], np.uint32), order, 1),
    )
    return CollectedLayer(layer, {"top": top}, None, None)


def _is_bfloat16(act: NDArray[Any]) -> bool:
    chunks = (
        np.ascontiguousarray(act[i : i + NEURONS_AT_ONCE], np.float32)
        for i in range(0, len(act), NEURONS_AT_ONCE)
    )
    return not any(np.any(chunk.view(np.uint32) & 0xFFFF) for chunk in chunks)


class Llama3Neurons(Format):
    name = NAME
    about = "index.npy, act.npy, token.npy: all top records of a run"
    holds_whole_runs = True

    def write(self, store: Store, run: Run, units: Sequence[UnitId], folder: Path) -> Generator[Progress]:
        return export_llama3_neurons(store, run, folder)

    def read(self, store: Store, folder: Path, options: ReadOptions) -> Generator[Progress]:
        from neuroexplain.subject.load import load_tokenizer, tokenizer_sha256, vocabulary_entries

        tokenizer = load_tokenizer(options.tokenizer)
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
