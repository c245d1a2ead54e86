"""Collect: a corpus and a subject -> a finished run in the store."""

from __future__ import annotations

import hashlib
import heapq
import json
import platform
import time
from collections.abc import Generator, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from torch import Tensor

from neuroexplain import __version__
from neuroexplain.config import CollectConfig
from neuroexplain.corpus.documents import find_files, read_documents
from neuroexplain.corpus.segments import TokenStream, TokenWriter, find_tokens, tokenize, visiting_order
from neuroexplain.errors import NeuroexplainError
from neuroexplain.pipeline.progress import Progress
from neuroexplain.pipeline.read_ahead import ReadAhead
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
from neuroexplain.subject.batch_size import find_batch_size
from neuroexplain.subject.checkpoint import find_checkpoint, save_checkpoint
from neuroexplain.subject.collector import Collector, send
from neuroexplain.subject.load import Subject, device_name, load_subject, tokenizer_sha256, vocabulary_entries
from neuroexplain.types import SEGMENT_LENGTH, Run


def find_finished_run(store: Store, config: CollectConfig) -> Run | None:
    """The finished run that the same options gave, if there is one."""
    asked = config.as_json()
    return next((run for run in list_runs(store) if run.status == "finished" and dict(run.config) == asked), None)


def run_collect(
    store: Store, config: CollectConfig, subject: Subject | None = None, *, keep_tokens: bool = False
) -> Generator[Progress]:
    """Read the corpus with the subject and store what every neuron responds to, as one run.

    All checks come before the first write. Every `checkpoint_every` seconds, and when the caller stops iterating, the state is
    saved beside the database; the same call goes on from there, and ends with what an undisturbed one gives. The corpus's
    tokens stay beside it until then, with `keep_tokens` for good. Raises NeuroexplainError where an interrupted run has other
    options.
    """
    find_files(config.dataset)  # missing files are found before a model is loaded
    interrupted = find_interrupted_run(store, config)
    if subject is None:
        yield Progress("loading the model", note=f"Loading {config.model} ...")
        subject = load_subject(config.model, config.dtype, config.device, config.revision)
    layers = _check_layers(config, subject)
    saved = None if interrupted is None else find_checkpoint(store.checkpoint_path(interrupted.id))
    tokens = tokens_path(store, config, subject.tokenizer)
    stream = find_tokens(tokens)
    if stream is None:
        stream = yield from _tokenize(config, subject.tokenizer, tokens)
    order = _order(config, stream)
    if not len(order):
        tokens.unlink()
        few = f"less than one segment of {SEGMENT_LENGTH}" if not stream.n_segments else f"{stream.n_segments:,} segments"
        part = "" if config.shard is None else f", too few for part {config.shard[0]}/{config.shard[1]}"
        raise NeuroexplainError(
            f"{', '.join(config.dataset)} gave {stream.n_documents:,} documents with {stream.n_tokens:,} tokens: {few}{part}. "
            "Give more text."
        )
    if config.segments is not None and stream.n_segments < config.segments:
        found = f"The corpus has {stream.n_segments:,} segments of 128 tokens, not {config.segments:,}: all are read."
        yield Progress("tokenizing", note=found)
    collector = _new_collector(config, subject, layers, draw_random_segments(order, config.seed, config.random_records))
    if saved is not None and interrupted is not None:
        _check_same(saved, subject, stream)
        run_id, begin, batch_size = interrupted.id, saved["done"], saved["batch_size"]
        collector.restore(saved["collector"])
        yield Progress(
            "collecting", begin, len(order), "segments", note=f"continuing: {begin:,} of {len(order):,} segments done"
        )
    else:
        if interrupted is not None:
            delete_run(store, interrupted.id)
        begin, batch_size = 0, config.batch_size or find_batch_size(collector, len(order))
        run_id = create_run(store, _run_fields(config, subject, layers, batch_size))
        save_vocabulary(store, run_id, vocabulary_entries(subject.tokenizer))
        yield Progress("collecting", 0, len(order), "segments", note=f"Reading {batch_size} segments at once.")
    saved = None  # its tensors are the collector's by now
    path = store.checkpoint_path(run_id)
    try:
        yield from _read(collector, stream, order, begin, batch_size, path, config.checkpoint_every)
        yield from _save(store, run_id, collector, stream)
    except torch.OutOfMemoryError as error:
        raise NeuroexplainError(
            f"The device ran out of memory. The last checkpoint is intact: free memory and run the same command again. "
            f"--windows host takes less of it; a smaller --batch-size than {batch_size} is another run."
        ) from error
    finish_run(store, run_id, n_segments=len(order), n_documents=stream.n_documents, n_tokens=len(order) * SEGMENT_LENGTH)
    path.unlink(missing_ok=True)
    if not keep_tokens:
        tokens.unlink(missing_ok=True)


def _read(
    collector: Collector,
    stream: TokenStream,
    order: NDArray[np.int64],
    begin: int,
    batch_size: int,
    path: Path,
    checkpoint_every: float,
) -> Generator[Progress]:
    """Collect from the segments `order[begin:]`, and leave a checkpoint of the whole at `path`."""
    subject, done = collector.subject, begin
    saved_at = began = time.monotonic()
    saving = 0.0

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        for first in range(begin, len(order), batch_size):
            segments = order[first : first + batch_size]
            ids = np.stack([stream.segment(int(n)).token_ids for n in segments]).astype(np.int64)
            padding = np.broadcast_to(ids[0], (batch_size - len(ids), SEGMENT_LENGTH))  # all batches have one shape
            yield send(torch.from_numpy(np.concatenate([ids, padding])), subject.device), torch.from_numpy(segments)

    def checkpoint() -> None:
        nonlocal saved_at, saving
        before = time.monotonic()
        state = {"dtype": str(subject.dtype), "device": subject.device.type, "corpus": stream.sha256, "batch_size": batch_size}
        save_checkpoint(path, {**state, "done": done, "collector": collector.state()})
        saved_at = time.monotonic()
        saving += saved_at - before

    ahead = ReadAhead(batches())
    try:
        for token_ids, segments in ahead:
            collector.read(token_ids, segments)
            done += len(segments)
            if done == len(order) or time.monotonic() - saved_at >= checkpoint_every:
                checkpoint()
            yield Progress("collecting", done, len(order), "segments")
    except GeneratorExit:  # stopped between two batches, where the state is whole
        checkpoint()
        raise
    waited = f"{ahead.waited:.1f} s for text and {saving:.1f} s for checkpoints"
    yield Progress("collecting", done, len(order), "segments", note=f"Waited {waited}, of {time.monotonic() - began:.1f} s.")


def _save(store: Store, run_id: int, collector: Collector, stream: TokenStream) -> Generator[Progress]:
    """Store every layer's result, and the segments that its exemplars come from."""
    stored = np.zeros(stream.n_segments, bool)
    with store.much_writing():
        for done, found in enumerate(collector.finish(stream.locate), 1):
            used = np.zeros_like(stored)
            for exemplars in found.exemplars.values():
                used[exemplars.segments[exemplars.counts_mask()]] = True
            save_segments(store, run_id, (stream.segment(int(n)) for n in np.flatnonzero(used & ~stored)))
            stored |= used
            save_collected_layer(store, run_id, found)
            yield Progress("saving", done, len(collector.layers), "layers")


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


def _new_collector(config: CollectConfig, subject: Subject, layers: tuple[int, ...], random_segments: list[int]) -> Collector:
    try:
        return Collector(
            subject,
            layers,
            activation=config.activation,
            sign=config.sign,
            top_k=config.top_k,
            positions=range(*config.positions),
            special_peaks=config.special_peaks,
            random_segments=random_segments,
            windows_on_host=config.windows == "host",
        )
    except torch.OutOfMemoryError as error:
        raise NeuroexplainError(
            f"The device's memory does not hold the model and the {config.top_k} records kept of each neuron. Keep their "
            "windows in this machine's memory, or collect fewer layers at a time:  --windows host  |  --layers 0-15"
        ) from error


def _check_same(saved: dict[str, Any], subject: Subject, stream: TokenStream) -> None:
    now = {"dtype": str(subject.dtype), "device": subject.device.type, "corpus": stream.sha256}
    different = [f"{name}: {saved[name]} then, {value} now" for name, value in now.items() if saved[name] != value]
    if different:
        raise NeuroexplainError(f"The interrupted run read something else. {'; '.join(different)}")


def draw_random_segments(visited: NDArray[np.int64], seed: int, n: int) -> list[int]:
    """The n visited segments with the smallest `stable_hash(seed, segment)`, in that order."""
    return heapq.nsmallest(n, map(int, visited), key=lambda segment: (stable_hash(seed, segment), segment))


def _order(config: CollectConfig, stream: TokenStream) -> NDArray[np.int64]:
    """Which segments are visited, in order; of a part, every `of`-th of the whole's."""
    sampling = "sequential" if _is_streamed(config) else config.sampling
    order = visiting_order(stream.n_segments, sampling, config.seed, config.segments)
    return order if config.shard is None else order[config.shard[0] - 1 :: config.shard[1]]


def _is_streamed(config: CollectConfig) -> bool:
    return find_files(config.dataset) is None


def tokens_path(store: Store, config: CollectConfig, tokenizer: Any) -> Path:
    """Where this corpus's tokens lie while a run is unfinished: named by all that decides what they are.

    A local file is known by its size and time; a streamed data set is taken to be the same for as long as the file lies there.
    """
    files = find_files(config.dataset)
    source: Any = [config.dataset, config.dataset_config, config.split, config.text_column]
    if files is None:
        source += [config.segments, config.sampling, config.seed]
    else:
        source += [(str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    backend = getattr(tokenizer, "backend_tokenizer", None)
    source += [tokenizer_sha256(tokenizer) if backend is None else backend.to_str(), tokenizer.eos_token_id]
    digest = hashlib.sha256(json.dumps(source).encode()).hexdigest()[:16]
    return store.checkpoint_path(0).with_name(f"neuroexplain-{digest}.tokens")


def _tokenize(config: CollectConfig, tokenizer: Any, path: Path) -> Generator[Progress, None, TokenStream]:
    yield Progress("tokenizing", note="Tokenizing the corpus ...")
    streamed = _is_streamed(config)
    shuffle = config.seed if streamed and config.sampling == "random" else None
    documents = read_documents(config.dataset, config.dataset_config, config.split, config.text_column, shuffle)
    tokens = tokenize(documents, tokenizer)
    wanted = config.segments * SEGMENT_LENGTH if streamed and config.segments is not None else None
    if wanted is not None:
        tokens = _until(tokens, wanted)
    began = time.monotonic()
    with TokenWriter(path) as writer:
        for ids in tokens:
            writer.add(ids)
            yield Progress("tokenizing", writer.n_tokens, wanted, "tokens")
        stream = writer.finish()
    took = time.monotonic() - began
    yield Progress("tokenizing", note=f"Tokenized {stream.n_tokens:,} tokens in {took:.1f} s.")
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
            "device": device_name(subject.device),
        },
    }
