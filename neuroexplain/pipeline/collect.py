"""Collect: a corpus and a subject -> a finished run in the store."""

from __future__ import annotations

import platform
import time
from collections.abc import Generator, Iterator
from itertools import islice
from typing import Any

import numpy as np
import torch
import transformers

from neuroexplain import __version__
from neuroexplain.config import CollectConfig
from neuroexplain.corpus.documents import find_files, read_documents
from neuroexplain.corpus.segments import TokenStream, tokenize, visiting_order
from neuroexplain.errors import NeuroexplainError
from neuroexplain.pipeline.progress import Progress
from neuroexplain.stable_hash import stable_hash
from neuroexplain.store.engine import Store
from neuroexplain.store.read import list_runs
from neuroexplain.store.write import (
    create_run,
    delete_run,
    finish_run,
    save_collected_layer,
    save_segments,
    save_vocabulary,
)
from neuroexplain.subject.checkpoint import find_checkpoint, save_checkpoint
from neuroexplain.subject.collector import Collector
from neuroexplain.subject.load import Subject, load_subject, tokenizer_sha256, vocabulary_entries
from neuroexplain.types import SEGMENT_LENGTH, Run

CPU_BATCH_SIZE = 16  # segments
LARGEST_BATCH_SIZE = 1024


def find_finished_run(store: Store, config: CollectConfig) -> Run | None:
    """The finished run that the same options gave, if there is one."""
    asked = config.as_json()
    return next((run for run in list_runs(store) if run.status == "finished" and dict(run.config) == asked), None)


def run_collect(store: Store, config: CollectConfig, subject: Subject | None = None) -> Generator[Progress]:
    """Read the corpus with the subject and store what every neuron responds to, as one run.

    All checks come before the first write. Every `checkpoint_every` seconds, and when the caller stops iterating, the state is
    saved beside the database; the same call goes on from there, and ends with what an undisturbed one gives. Raises
    NeuroexplainError where an interrupted run has other options.
    """
    find_files(config.dataset)  # missing files are found before a model is loaded
    interrupted = find_interrupted_run(store, config)
    if subject is None:
        yield Progress("loading the model", note=f"Loading {config.model} ...")
        subject = load_subject(config.model, config.dtype, config.device, config.revision)
    layers = _check_layers(config, subject)
    path = None if interrupted is None else store.checkpoint_path(interrupted.id)
    saved = None if path is None else find_checkpoint(path, subject.device)
    yield Progress("tokenizing", note="Tokenizing the corpus ...")
    stream = _tokenize(config, subject)
    sampling = "sequential" if _is_streamed(config) else config.sampling
    order = visiting_order(stream.n_segments, sampling, config.seed, config.segments)
    if config.segments is not None and len(order) < config.segments:
        yield Progress(
            "tokenizing", note=f"The corpus has {len(order):,} segments of 128 tokens, not {config.segments:,}: all are read."
        )
    order = order if config.shard is None else order[config.shard[0] - 1 :: config.shard[1]]
    if not len(order):
        raise NeuroexplainError(f"There is no segment for part {config.shard}: the corpus gave {stream.n_segments:,} in all.")
    collector = Collector(
        subject,
        layers,
        activation=config.activation,
        sign=config.sign,
        top_k=config.top_k,
        positions=range(*config.positions),
        special_peaks=config.special_peaks,
        random_segments=draw_random_segments(order, config.seed, config.random_records),
    )
    if saved is not None and interrupted is not None:
        _check_same_machine(saved, subject, len(order))
        run_id, begin, batch_size = interrupted.id, saved["done"], saved["batch_size"]
        collector.restore(saved["collector"])
        yield Progress(
            "collecting", begin, len(order), "segments", note=f"continuing: {begin:,} of {len(order):,} segments done"
        )
    else:
        if interrupted is not None:
            delete_run(store, interrupted.id)
        begin, batch_size = 0, config.batch_size or find_batch_size(subject, collector, len(order))
        run_id = create_run(store, _run_fields(config, subject, layers, batch_size))
        save_vocabulary(store, run_id, vocabulary_entries(subject.tokenizer))
        yield Progress("collecting", 0, len(order), "segments")
    path = store.checkpoint_path(run_id)
    state = {"dtype": str(subject.dtype), "device": subject.device.type, "batch_size": batch_size, "n_segments": len(order)}
    saved_at, done = time.monotonic(), begin
    try:
        for begin_batch in range(begin, len(order), batch_size):
            segments = [stream.segment(int(number)) for number in order[begin_batch : begin_batch + batch_size]]
            save_segments(store, run_id, segments)
            ids = np.stack([s.token_ids for s in segments] + [segments[0].token_ids] * (batch_size - len(segments)))
            collector.read(torch.from_numpy(ids.astype(np.int64)), torch.tensor([s.segment for s in segments]))
            done = begin_batch + len(segments)
            if done == len(order) or time.monotonic() - saved_at >= config.checkpoint_every:
                save_checkpoint(path, {**state, "done": done, "collector": collector.state()})
                saved_at = time.monotonic()
            yield Progress("collecting", done, len(order), "segments")
    except GeneratorExit:  # stopped between two batches, where the state is whole
        save_checkpoint(path, {**state, "done": done, "collector": collector.state()})
        raise
    except torch.OutOfMemoryError as error:
        raise NeuroexplainError(
            f"The device ran out of memory after {done:,} of {len(order):,} segments; the last checkpoint is intact. "
            "Free memory and run the same command again; a smaller --batch-size is another run."
        ) from error
    for done_layers, found in enumerate(collector.finish(stream.locate), 1):
        save_collected_layer(store, run_id, found)
        yield Progress("saving", done_layers, len(layers), "layers")
    finish_run(store, run_id, n_segments=len(order), n_documents=stream.n_documents, n_tokens=len(order) * SEGMENT_LENGTH)
    path.unlink(missing_ok=True)


def find_interrupted_run(store: Store, config: CollectConfig) -> Run | None:
    """The unfinished run of these options. Raises NeuroexplainError, naming the difference, where one has other options."""
    asked = config.as_json()
    for run in list_runs(store):
        if run.status == "running":
            different = [name for name in asked if run.config.get(name) != asked[name]]
            if different:
                shown = "; ".join(f"{name}: {run.config.get(name)} then, {asked[name]} now" for name in different)
                raise NeuroexplainError(
                    f"Run {run.id} in {store.name} was interrupted, and had other options. {shown}\n"
                    f"Go on with its options, or drop it:  neuroexplain runs --drop {run.id} --db {store.name}"
                )
            return run
    return None


def find_batch_size(subject: Subject, collector: Collector, n_segments: int) -> int:
    """On a CPU 16; on a GPU the largest power of two that fits, found by trying before the first segment."""
    if subject.device.type != "cuda":
        return CPU_BATCH_SIZE
    fits, size = 1, 1
    while size <= min(LARGEST_BATCH_SIZE, max(n_segments, 1)):
        try:
            collector.probe(size)
        except torch.OutOfMemoryError:
            break
        finally:
            torch.cuda.empty_cache()
        fits, size = size, size * 2
    return fits


def _check_same_machine(saved: dict[str, Any], subject: Subject, n_segments: int) -> None:
    now = {"dtype": str(subject.dtype), "device": subject.device.type, "n_segments": n_segments}
    different = [f"{name}: {saved[name]} then, {value} now" for name, value in now.items() if saved[name] != value]
    if different:
        raise NeuroexplainError(f"The interrupted run read something else. {'; '.join(different)}")


def draw_random_segments(visited: np.ndarray[Any, Any], seed: int, n: int) -> list[int]:
    """The n visited segments with the smallest `stable_hash(seed, segment)`, in that order."""
    return sorted(map(int, visited), key=lambda segment: (stable_hash(seed, segment), segment))[:n]


def _is_streamed(config: CollectConfig) -> bool:
    return find_files(config.dataset) is None


def _tokenize(config: CollectConfig, subject: Subject) -> TokenStream:
    streamed = _is_streamed(config)
    shuffle = config.seed if streamed and config.sampling == "random" else None
    documents = read_documents(config.dataset, config.dataset_config, config.split, config.text_column, shuffle)
    tokens = tokenize(documents, subject.tokenizer)
    if streamed and config.segments is not None:
        tokens = _until(tokens, config.segments * SEGMENT_LENGTH)
    stream = TokenStream(tokens)
    if stream.n_segments == 0:
        raise NeuroexplainError(
            f"{', '.join(config.dataset)} gave {stream.n_documents:,} documents with {stream.n_tokens:,} tokens: "
            f"less than one segment of {SEGMENT_LENGTH}. Give more text."
        )
    return stream


def _until(tokens: Iterator[Any], n_tokens: int) -> Iterator[Any]:
    seen = 0
    for ids in tokens:
        yield ids
        seen += len(ids)
        if seen >= n_tokens:
            return


def _check_layers(config: CollectConfig, subject: Subject) -> tuple[int, ...]:
    n_layers = len(subject.layers)
    layers = tuple(range(n_layers)) if config.layers is None else config.layers
    wrong = [layer for layer in layers if layer >= n_layers]
    if wrong:
        shown = ", ".join(map(str, islice(wrong, 5)))
        raise NeuroexplainError(
            f"{subject.name} has no layer {shown}: it has {n_layers} layers, counted from 0.\nTry --layers 0-{n_layers - 1}"
        )
    return layers


def _run_fields(config: CollectConfig, subject: Subject, layers: tuple[int, ...], batch_size: int) -> dict[str, Any]:
    return {
        "subject": subject.name,
        "subject_revision": subject.revision,
        "dtype": str(subject.dtype).removeprefix("torch."),
        "activation": config.activation,
        "layers": list(layers),
        "d_mlp": subject.d_mlp,
        "n_layers": len(subject.layers),
        "top_k": config.top_k,
        "n_random": config.random_records,
        "seed": config.seed,
        "tokenizer_sha256": tokenizer_sha256(subject.tokenizer),
        "config": config.as_json(),
        "versions": {
            "neuroexplain": __version__,
            "torch": str(torch.__version__),
            "transformers": transformers.__version__,
            "batch_size": str(batch_size),
            "python": platform.python_version(),
            "device": torch.cuda.get_device_name(subject.device) if subject.device.type == "cuda" else platform.machine(),
        },
    }
