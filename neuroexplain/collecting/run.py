"""Collect: a corpus and a subject -> a finished run in the store."""

from __future__ import annotations

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
from neuroexplain.collecting.batch_size import find_batch_size
from neuroexplain.collecting.checkpoint import find_checkpoint, save_checkpoint
from neuroexplain.collecting.collector import Collector, send
from neuroexplain.collecting.kernels import FAILED, can_compile, undo
from neuroexplain.config import CollectConfig
from neuroexplain.corpus.documents import find_files
from neuroexplain.corpus.reading import Tally, Text, hash_text, prepare_text, tokens_path
from neuroexplain.corpus.token_stream import TokenStream
from neuroexplain.errors import NeuroexplainError
from neuroexplain.runs import Run
from neuroexplain.runtime.progress import Progress
from neuroexplain.runtime.read_ahead import ReadAhead
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
from neuroexplain.subject.load import Subject, device_name, load_subject, tokenizer_sha256, vocabulary_entries
from neuroexplain.units import SEGMENT_LENGTH

MANY_SEGMENTS = 1 << 20  # more than any batch has: where a corpus's length is not known yet


def find_finished_run(store: Store, config: CollectConfig) -> Run | None:
    """The finished run that the same options gave, if there is one."""
    asked = config.as_json()
    return next(
        (run for run in list_runs(store) if run.status == "finished" and dict(run.config) == asked), None
    )


def run_collect(
    store: Store, config: CollectConfig, subject: Subject | None = None, *, tally: Tally | None = None
) -> Generator[Progress]:
    """Read the corpus with the subject and store what every neuron responds to, as one run.

    All checks come before the first write. Every `checkpoint_every` seconds, and when the caller stops iterating, the state is
    saved beside the database; the same call goes on from there, and ends with what an undisturbed one gives. The corpus's
    tokens stay beside it until then; with a `tally` they are those of another process. Raises NeuroexplainError where an
    interrupted run has other options.
    """
    find_files(config.dataset)  # missing files are found before a model is loaded
    interrupted = find_interrupted_run(store, config)
    if subject is None:
        yield Progress("loading the model", note=f"Loading {config.model} ...")
        subject = load_subject(config.model, config.dtype, config.device, config.revision)
    layers = _check_layers(config, subject)
    saved = None if interrupted is None else find_checkpoint(store.checkpoint_path(interrupted.id))
    if saved is not None and interrupted is not None and saved.get("run") != _identity(interrupted):
        saved = None  # left by a run of another database of that name
    if saved is not None:
        saved.setdefault("kernels", "plain")  # all were, before there was a choice
    tokens = tokens_path(store.checkpoint_path(0).parent, config, subject.tokenizer)
    text = yield from prepare_text(config, subject.tokenizer, tokens, tally)
    try:
        _check_text(text, config, subject, tokens if tally is None else None)
        undo(subject)  # what an earlier run of this process compiled
        collector = _new_collector(config, subject, layers)
        if saved is not None:
            batch_size = saved["batch_size"]
        else:
            batch_size = config.batch_size or find_batch_size(collector, text.total or MANY_SEGMENTS)
        if (
            config.compile
            and can_compile(subject.device)
            and (saved is None or saved["kernels"] == "compiled")
        ):
            yield from _compile(collector, batch_size)
        if saved is not None and interrupted is not None:
            run_id, begin = interrupted.id, saved["done"]
            read = _check_same(saved, collector, text)
            collector.restore(saved["collector"])
            of = "" if text.total is None else f"of {text.total:,} "
            note = f"continuing: {begin:,} {of}segments done"
        else:
            if interrupted is not None:
                delete_run(store, interrupted.id)
            begin, read = 0, hash_text(text, 0)
            fields = _run_fields(config, collector, batch_size)
            run_id = create_run(store, fields)
            store.checkpoint_path(run_id).unlink(missing_ok=True)
            save_vocabulary(store, run_id, vocabulary_entries(subject.tokenizer))
            note = f"Reading {batch_size} segments at once, in {fields['dtype']} on {subject.device}."
        yield Progress("collecting", begin, text.total, "segments", note=note)
        saved = None  # its tensors are the collector's by now
        path = store.checkpoint_path(run_id)
        run = next(run for run in list_runs(store) if run.id == run_id)
        try:
            done = yield from _read(
                collector, text, begin, batch_size, run, path, config.checkpoint_every, read
            )
            stream = text.whole()
            for note in text.said:
                yield Progress("collecting", done, done, "segments", note=note)
            yield from _save(store, run_id, collector, stream)
        except torch.OutOfMemoryError as error:
            raise NeuroexplainError(
                f"The device ran out of memory. The last checkpoint is intact: free memory and run the same command again. "
                f"--windows host takes less of it; a smaller --batch-size than {batch_size} is another run."
            ) from error
        finish_run(
            store, run_id, n_segments=done, n_documents=stream.n_documents, n_tokens=done * SEGMENT_LENGTH
        )
    finally:
        text.close()
    path.unlink(missing_ok=True)
    if tally is None:
        tokens.unlink(missing_ok=True)


def _check_text(text: Text, config: CollectConfig, subject: Subject, tokens: Path | None) -> None:
    """Raises NeuroexplainError where there is less than a segment, or the first has tokens that the model does not know."""
    first = next(text.batches(0, 1, 1), None)
    if first is not None:
        _check_tokens(first[1], subject)
    else:
        stream = text.whole()
        if tokens is not None:
            tokens.unlink(missing_ok=True)
        few = (
            f"less than one segment of {SEGMENT_LENGTH}"
            if not stream.n_segments
            else f"{stream.n_segments:,} segments"
        )
        part = "" if config.shard is None else f", too few for part {config.shard[0]}/{config.shard[1]}"
        if config.shard is not None and config.segments is not None and stream.n_segments >= config.segments:
            raise NeuroexplainError(
                f"Part {config.shard[0]}/{config.shard[1]} of --segments {config.segments} has none. Take fewer parts, "
                "or more segments."
            )
        raise NeuroexplainError(
            f"{', '.join(config.dataset)} gave {stream.n_documents:,} documents with {stream.n_tokens:,} tokens: {few}{part}. "
            "Give more text."
        )


def _check_tokens(token_ids: NDArray[np.uint32], subject: Subject) -> None:
    largest, n_known = int(token_ids.max()), len(subject.unembedding)
    if largest >= n_known:
        raise NeuroexplainError(
            f"The tokenizer of {subject.name} gave the token {largest}, and the model knows {n_known}: they do not "
            "belong together."
        )


def _read(
    collector: Collector,
    text: Text,
    begin: int,
    batch_size: int,
    run: Run,
    path: Path,
    checkpoint_every: float,
    read: Any,
) -> Generator[Progress, None, int]:
    """Collect from the segments from place `begin` on, and leave a checkpoint of the whole at `path`: how many were read.

    read: the SHA-256 of what was read before, which goes on.
    """
    subject, done = collector.subject, begin
    saved_at = began = time.monotonic()
    saved_of, saving = begin, 0.0

    def batches() -> Iterator[tuple[NDArray[np.uint32], Tensor, Tensor]]:
        for numbers, ids in text.batches(begin, None, batch_size):
            _check_tokens(ids, subject)
            padding = np.broadcast_to(
                ids[0], (batch_size - len(ids), SEGMENT_LENGTH)
            )  # all batches have one shape
            token_ids = torch.from_numpy(np.concatenate([ids, padding]).astype(np.int64))
            yield ids, send(token_ids, subject.device), torch.from_numpy(numbers)

    def checkpoint() -> None:
        nonlocal saved_at, saved_of, saving
        before = time.monotonic()
        state = {**_same(collector, read), "run": _identity(run), "batch_size": batch_size, "done": done}
        save_checkpoint(path, {**state, "collector": collector.state()})
        saved_at, saved_of = time.monotonic(), done
        saving += saved_at - before

    ahead = ReadAhead(batches())
    try:
        for ids, token_ids, segments in ahead:
            collector.read(token_ids, segments)
            read.update(ids.astype("<u4").tobytes())
            done += len(segments)
            if time.monotonic() - saved_at >= checkpoint_every:
                checkpoint()
            yield Progress("collecting", done, text.total, "segments")
        if saved_of < done:
            checkpoint()
    except (
        GeneratorExit,
        NeuroexplainError,
    ):  # stopped, or the text broke off, between two batches: the state is whole
        checkpoint()
        raise
    waited = f"{ahead.waited:.1f} s for text and {saving:.1f} s for checkpoints"
    yield Progress(
        "collecting", done, done, "segments", note=f"Waited {waited}, of {time.monotonic() - began:.1f} s."
    )
    return done


def _save(store: Store, run_id: int, collector: Collector, stream: TokenStream) -> Generator[Progress]:
    """Store every layer's result, and the segments that its exemplars come from."""
    stored = np.zeros(stream.n_segments, bool)
    with store.bulk_writing():
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
                shown = "; ".join(
                    f"{name}: {run.config.get(name)} then, {asked[name]} now" for name in different
                )
                raise NeuroexplainError(
                    f"Run {run.id} in {store.name} was interrupted, and had other options. {shown}\n"
                    f"Go on with its options, or drop it:  neuroexplain runs --drop {run.id} --db {store.name}"
                )
            return run
    return None


def _new_collector(config: CollectConfig, subject: Subject, layers: tuple[int, ...]) -> Collector:
    try:
        return Collector(
            subject,
            layers,
            source=config.source,
            activation=config.read,
            sign=config.signed,
            top_k=config.top_k,
            positions=range(*config.positions),
            special_peaks=config.special_peaks,
            n_random=config.random_records,
            seed=config.seed,
            windows_on_host=config.windows == "host",
        )
    except torch.OutOfMemoryError as error:
        raise NeuroexplainError(
            f"The device's memory does not hold the model and the {config.top_k} records kept of each neuron. Keep their "
            "windows in this machine's memory, or collect fewer layers at a time:  --windows host  |  --layers 0-15"
        ) from error


def _identity(run: Run) -> str:
    """Which run a checkpoint is of: its options, and when it began."""
    return json.dumps([run.started_at, dict(run.config)], sort_keys=True)


def _compile(collector: Collector, batch_size: int) -> Generator[Progress]:
    """Read with few kernels where that works, else as before, and say so."""
    yield Progress("loading the model", note="Compiling the model's attention and norms ...")
    try:
        collector.compile(batch_size)
    except torch.OutOfMemoryError as error:
        raise NeuroexplainError(
            f"The device's memory does not hold a batch of {batch_size} segments beside what is kept of the neurons. "
            "Take a smaller --batch-size, or --windows host."
        ) from error
    except FAILED as error:
        cause = getattr(error, "inner_exception", error)  # what the compiler's own error is about
        reason = next(iter(str(cause).strip().splitlines()), type(cause).__name__)
        yield Progress(
            "loading the model", note=f"That failed, so the model is read as it is, more slowly: {reason}"
        )


def _same(collector: Collector, read: Any) -> dict[str, str]:
    """What must be the same to go on: all that decides activations, and the text read so far."""
    subject = collector.subject
    found = {"dtype": str(subject.dtype), "device": subject.device.type, "kernels": _kernels(collector)}
    return found | {"weights": subject.weights_sha256, "text": read.hexdigest()}


def _kernels(collector: Collector) -> str:
    return "compiled" if collector.compiled else "plain"


def _check_same(saved: dict[str, Any], collector: Collector, text: Text) -> Any:
    """The SHA-256 of the text that was read, to go on with. Raises NeuroexplainError where anything differs."""
    read = hash_text(text, saved["done"])
    now = _same(collector, read)
    different = [
        f"{name}: {saved.get(name)} then, {value} now"
        for name, value in now.items()
        if saved.get(name) != value
    ]
    if different:
        raise NeuroexplainError(
            f"The interrupted run had another model, text or way to read it. {'; '.join(different)}"
        )
    return read


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


def _run_fields(config: CollectConfig, collector: Collector, batch_size: int) -> dict[str, Any]:
    subject = collector.subject
    return {
        "subject": subject.name,
        "subject_revision": subject.revision,
        "dtype": subject.dtype_name,
        "activation": config.read,
        "layers": list(collector.layers),
        "sources": list(collector.sources.values()),
        "n_layers": len(subject.layers),
        "top_k": config.top_k,
        "n_random": config.random_records,
        "seed": config.seed,
        "tokenizer_sha256": tokenizer_sha256(subject.tokenizer),
        "config": config.as_json(),
        "rectified": config.signed == "both",
        "versions": {
            "neuroexplain": __version__,
            "torch": str(torch.__version__),
            "transformers": transformers.__version__,
            "batch_size": str(batch_size),
            "weights": subject.weights_sha256,
            "python": platform.python_version(),
            "device": device_name(subject.device),
            "kernels": _kernels(collector),
        },
    }
