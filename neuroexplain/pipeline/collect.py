"""Collect: a corpus and a subject -> a finished run in the store."""

from __future__ import annotations

import platform
from collections.abc import Iterator
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
from neuroexplain.subject.collector import Collector
from neuroexplain.subject.load import Subject, load_subject, tokenizer_sha256, vocabulary_entries
from neuroexplain.types import SEGMENT_LENGTH, Run

BATCH_SIZES = {"cuda": 64, "cpu": 16}


def find_finished_run(store: Store, config: CollectConfig) -> Run | None:
    """The finished run that the same options gave, if there is one."""
    asked = config.as_json()
    return next((run for run in list_runs(store) if run.status == "finished" and _same(run, asked)), None)


def run_collect(store: Store, config: CollectConfig, subject: Subject | None = None) -> Iterator[Progress]:
    """Read the corpus with the subject and store what every neuron responds to, as one run.

    All checks come before the first write. A run of the same options that was cut off is started over.
    """
    find_files(config.dataset)  # missing files are found before a model is loaded
    if subject is None:
        yield Progress("loading the model", note=f"Loading {config.model} ...")
        subject = load_subject(config.model, config.dtype, config.device, config.revision)
    layers = _check_layers(config, subject)
    yield Progress("tokenizing", note="Tokenizing the corpus ...")
    stream = _tokenize(config, subject)
    order = visiting_order(
        stream.n_segments, "sequential" if _is_streamed(config) else config.sampling, config.seed, config.segments
    )
    if config.segments is not None and len(order) < config.segments:
        yield Progress(
            "tokenizing", note=f"The corpus has {len(order):,} segments of 128 tokens, not {config.segments:,}: all are read."
        )

    for run in list_runs(store):
        if run.status == "running" and _same(run, config.as_json()):
            delete_run(store, run.id)
    run_id = create_run(store, _run_fields(config, subject, layers))
    save_vocabulary(store, run_id, vocabulary_entries(subject.tokenizer))
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
    batch_size = config.batch_size or BATCH_SIZES.get(subject.device.type, 16)
    for done in range(0, len(order), batch_size):
        segments = [stream.segment(int(number)) for number in order[done : done + batch_size]]
        save_segments(store, run_id, segments)
        ids = np.stack([s.token_ids for s in segments] + [segments[0].token_ids] * (batch_size - len(segments)))
        numbers = torch.tensor([s.segment for s in segments])
        collector.read(torch.from_numpy(ids.astype(np.int64)), numbers)
        yield Progress("collecting", done + len(segments), len(order), "segments")
    for done_layers, found in enumerate(collector.finish(lambda s, at, start: stream.segment(s).locate(at, start)), 1):
        save_collected_layer(store, run_id, found)
        yield Progress("saving", done_layers, len(layers), "layers")
    documents = stream.n_documents
    finish_run(store, run_id, n_segments=len(order), n_documents=documents, n_tokens=len(order) * SEGMENT_LENGTH)


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


def _run_fields(config: CollectConfig, subject: Subject, layers: tuple[int, ...]) -> dict[str, Any]:
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
            "python": platform.python_version(),
            "device": torch.cuda.get_device_name(subject.device) if subject.device.type == "cuda" else platform.machine(),
        },
    }


def _same(run: Run, asked: dict[str, Any]) -> bool:
    """Whether a run was made with the options asked for; tuples come back from JSON as lists."""
    import json

    return bool(dict(run.config) == json.loads(json.dumps(asked)))
