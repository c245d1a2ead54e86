"""Collect: a corpus and a subject -> a finished run in the store."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from neuroexplain.collecting.checks import check_text, check_tokens, choose_layers
from neuroexplain.collecting.collector import Collector, send
from neuroexplain.collecting.open_run import (
    OpenRun,
    begin_run,
    continue_run,
    find_interrupted_run,
    find_run_checkpoint,
)
from neuroexplain.collecting.prepare_collector import prepare_collector
from neuroexplain.config import CollectConfig
from neuroexplain.corpus.files import find_files
from neuroexplain.corpus.reading import Batch, Text, prepare_text
from neuroexplain.corpus.shared_progress import SharedProgress
from neuroexplain.corpus.token_stream import TokenStream
from neuroexplain.corpus.tokenizing import tokens_path
from neuroexplain.errors import ActivationsNotFinite, NeuroexplainError
from neuroexplain.runs import Run
from neuroexplain.runtime.progress import Progress
from neuroexplain.runtime.read_ahead import ReadAhead
from neuroexplain.sampling import LEAST_PASSAGES
from neuroexplain.sources.base import SourceKind, TakesDictionary
from neuroexplain.store.engine import Store
from neuroexplain.store.runs import list_runs
from neuroexplain.store.save_collected import (
    delete_run,
    finish_run,
    save_collected_layer,
    save_health,
    save_segments,
)
from neuroexplain.subject.load import load_subject
from neuroexplain.subject.model import Subject
from neuroexplain.units import SEGMENT_LENGTH

CHECKED_SEGMENTS = 64  # on which a dictionary is checked: 4,096 tokens


def find_finished_run(store: Store, config: CollectConfig) -> Run | None:
    """The finished run of the same options; None if it does not exist."""
    options = config.as_json()
    finished = (run for run in list_runs(store) if run.status == "finished")
    return next((run for run in finished if dict(run.config) == options), None)


def run_collect(
    store: Store,
    config: CollectConfig,
    subject: Subject | None = None,
    *,
    shared: SharedProgress | None = None,
) -> Generator[Progress]:
    """Read the corpus with the subject, and store the records and statistics of every unit as one run.

    All checks come before the first write. Every `checkpoint_every` seconds, and when the caller stops
    iterating, the state is saved beside the database. The same call continues from there and ends with the
    result of an undisturbed run. The corpus's tokens stay beside the database until then. With `shared`,
    another process tokenizes the corpus and reports there. Raises NeuroexplainError if an interrupted run has
    other options.
    """
    kind = _open_kind(config)
    interrupted = find_interrupted_run(store, config)
    if subject is None:
        yield Progress("loading the model", note=f"Loading {config.model} ...")
        subject = _load_subject(config)
    layers = choose_layers(config, subject, kind)
    checkpoint = find_run_checkpoint(store, interrupted)
    tokens = tokens_path(store.checkpoint_path(0).parent, config, subject.tokenizer)
    text = yield from prepare_text(config, subject.tokenizer, tokens, shared)
    try:
        check_text(text, config, subject, tokens if shared is None else None)
        collector, batch_size = yield from prepare_collector(
            config, kind, subject, layers, text.total, checkpoint
        )
        if interrupted is not None and checkpoint is not None:
            open_run = continue_run(store, interrupted, checkpoint, collector, text)
            of_total = "" if text.total is None else f"of {text.total:,} "
            note = f"continuing: {open_run.n_done:,} {of_total}segments done"
        else:
            if interrupted is not None:
                delete_run(store, interrupted.id)
            open_run = begin_run(store, config, collector, batch_size, text)
            note = f"Reading {batch_size} segments at once, in {subject.dtype_name} on {subject.device}."
        checkpoint = None  # frees its memory: the collector has copied it
        yield Progress("collecting", open_run.n_done, text.total, "segments", note=note)
        if isinstance(kind, TakesDictionary):
            yield from _check_dictionary(store, kind, collector, text, open_run)
        try:
            yield from _read(collector, text, open_run, config.checkpoint_every)
            stream = text.whole()
            for note in text.notes:
                yield Progress("collecting", open_run.n_done, open_run.n_done, "segments", note=note)
            yield from _save(store, open_run.run.id, collector, stream)
        except torch.OutOfMemoryError as error:
            raise _out_of_memory(batch_size) from error
        except ActivationsNotFinite:  # nothing of the run can be used, and another precision is another run
            delete_run(store, open_run.run.id)
            open_run.checkpoint_path.unlink(missing_ok=True)
            raise
        _finish(store, open_run, stream, collector)
    finally:
        text.close()
    open_run.checkpoint_path.unlink(missing_ok=True)
    if shared is None and not config.keep_tokens:
        tokens.unlink(missing_ok=True)


def _open_kind(config: CollectConfig) -> SourceKind:
    """The kind of units to read. Raises for missing files and dictionaries, before a model is loaded."""
    find_files(config.dataset, config.split)
    kind = config.open_kind()
    if isinstance(kind, TakesDictionary):
        kind.layers()
    return kind


def _check_dictionary(
    store: Store, kind: TakesDictionary, collector: Collector, text: Text, open_run: OpenRun
) -> Generator[Progress]:
    """Store how well the dictionary fits the first segments, with a note on each layer."""
    subject = collector.subject
    ids = np.concatenate([ids for _, ids, _ in text.batches(0, CHECKED_SEGMENTS, CHECKED_SEGMENTS)])
    token_ids = send(torch.from_numpy(ids.astype(np.int64)), subject.device)
    figures = {}
    for health in kind.check(subject, collector.sources, token_ids):
        figures[str(health.layer)] = health.figures
        lines = [health.line] if health.warning is None else [health.line, f"Warning: {health.warning}"]
        for line in lines:
            yield Progress("collecting", open_run.n_done, text.total, "segments", note=line)
    save_health(store, open_run.run.id, figures)


def _why_few_passages(text: Text) -> str | None:
    """A note if the visited text has too few passages for splits of alike size; None if not known yet."""
    n = text.count_passages()
    if n is None or n >= LEAST_PASSAGES:
        return None
    return (
        f"The text has {n} passages, and each is in one split as a whole. With fewer than {LEAST_PASSAGES} "
        "the splits are very unequal, and a unit may have too few records to be explained or scored. "
        "Read more text."
    )


def _load_subject(config: CollectConfig) -> Subject:
    return load_subject(
        config.model,
        config.dtype,
        config.device,
        config.revision,
        trust_remote_code=config.trust_remote_code,
    )


def _read(
    collector: Collector, text: Text, open_run: OpenRun, checkpoint_every: float
) -> Generator[Progress]:
    """Collect from all segments that the run has not read yet, and leave a checkpoint of the whole."""
    began = saved_at = time.monotonic()
    n_saved, seconds_saving = open_run.n_done, 0.0
    note = _why_few_passages(text)
    if note is not None:
        yield Progress("collecting", open_run.n_done, text.total, "segments", note=note)

    def save() -> None:
        nonlocal saved_at, n_saved, seconds_saving
        before = time.monotonic()
        if open_run.n_done:
            collector.check_finite()
        open_run.save(collector)
        saved_at, n_saved = time.monotonic(), open_run.n_done
        seconds_saving += saved_at - before

    batches = text.batches(open_run.n_done, None, open_run.batch_size)
    ahead = ReadAhead(_padded(batches, open_run.batch_size, collector.subject))
    try:
        for ids, token_ids, segments, splits in ahead:
            collector.read(token_ids, segments, splits)
            open_run.text_hash.update(ids.astype("<u4").tobytes())
            if not open_run.n_done:
                collector.check_finite()  # a precision that is too small shows at once
            open_run.n_done += len(segments)
            if time.monotonic() - saved_at >= checkpoint_every:
                save()
            yield Progress("collecting", open_run.n_done, text.total, "segments")
        if n_saved < open_run.n_done:
            save()
    except ActivationsNotFinite:
        raise
    except (GeneratorExit, NeuroexplainError):  # between two batches, where the state is whole
        save()
        raise
    text.whole()
    if note is None and (note := _why_few_passages(text)) is not None:
        yield Progress("collecting", open_run.n_done, open_run.n_done, "segments", note=note)
    seconds = time.monotonic() - began
    waited = f"{ahead.waited:.1f} s for text and {seconds_saving:.1f} s for checkpoints"
    note = f"Waited {waited}, of {seconds:.1f} s."
    yield Progress("collecting", open_run.n_done, open_run.n_done, "segments", note=note)


def _padded(
    batches: Iterable[Batch], batch_size: int, subject: Subject
) -> Iterator[tuple[NDArray[np.uint32], Tensor, Tensor, NDArray[np.int8]]]:
    """Of each batch token ids, the same on the device and padded to the batch size, segments, and splits."""
    for numbers, ids, splits in batches:
        check_tokens(ids, subject)
        padding = np.broadcast_to(ids[0], (batch_size - len(ids), SEGMENT_LENGTH))
        token_ids = torch.from_numpy(np.concatenate([ids, padding]).astype(np.int64))
        yield ids, send(token_ids, subject.device), torch.from_numpy(numbers), splits


def _save(store: Store, run_id: int, collector: Collector, stream: TokenStream) -> Generator[Progress]:
    """Store every layer's result, and the segments that its records come from."""
    is_stored = np.zeros(stream.n_segments, bool)
    with store.bulk_writing():
        for done, layer in enumerate(collector.finish(stream.locate), 1):
            is_used = np.zeros_like(is_stored)
            samples = (sample.records for sample in layer.samples.values())
            for exemplars in (*layer.exemplars.values(), *samples):
                is_used[exemplars.segments[exemplars.counts_mask()]] = True
            if layer.background is not None:
                is_used[layer.background.segments] = True
            numbers = np.flatnonzero(is_used & ~is_stored)
            save_segments(store, run_id, stream.segments(numbers, collector.seed))
            is_stored |= is_used
            save_collected_layer(store, run_id, layer)
            yield Progress("saving", done, len(collector.layers), "layers")


def _finish(store: Store, open_run: OpenRun, stream: TokenStream, collector: Collector) -> None:
    finish_run(
        store,
        open_run.run.id,
        n_segments=open_run.n_done,
        n_documents=stream.n_documents,
        n_tokens=open_run.n_done * SEGMENT_LENGTH,
        split_segments=collector.split_segments,
    )


def _out_of_memory(batch_size: int) -> NeuroexplainError:
    return NeuroexplainError(
        "The device ran out of memory. The last checkpoint is intact: free memory and run the same command "
        f"again. --windows host takes less of it; a smaller --batch-size than {batch_size} is another run."
    )
