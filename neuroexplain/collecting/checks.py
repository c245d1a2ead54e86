"""What is checked before a run is written: its layers, its text, and that tokenizer and model fit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from neuroexplain.config import CollectConfig
from neuroexplain.corpus.reading import Text
from neuroexplain.errors import NeuroexplainError
from neuroexplain.sources.base import SourceKind, TakesDictionary
from neuroexplain.subject.model import Subject
from neuroexplain.units import SEGMENT_LENGTH


def choose_layers(config: CollectConfig, subject: Subject, kind: SourceKind) -> tuple[int, ...]:
    """The configured layers, by default all, or all that the kind's dictionary holds.

    Raises NeuroexplainError if the subject lacks one.
    """
    n_layers = len(subject.layers)
    layers = config.layers
    if layers is None:
        layers = kind.layers() if isinstance(kind, TakesDictionary) else tuple(range(n_layers))
    missing = [layer for layer in layers if layer >= n_layers]
    if missing:
        raise NeuroexplainError(
            f"{subject.name} has no layer {', '.join(map(str, missing[:5]))}: it has {n_layers} layers, "
            f"counted from 0.\nTry --layers 0-{n_layers - 1}"
        )
    return layers


def check_text(text: Text, config: CollectConfig, subject: Subject, tokens: Path | None) -> None:
    """Raise NeuroexplainError if there is no segment, or if the first has tokens unknown to the model.

    `tokens` is the corpus's file of tokens, which is then removed; None if it belongs to another process.
    """
    first = next(text.batches(0, 1, 1), None)
    if first is not None:
        check_tokens(first[1], subject)
        return
    stream = text.whole()
    if tokens is not None:
        tokens.unlink(missing_ok=True)
    if config.shard is not None and config.segments is not None and stream.n_segments >= config.segments:
        raise NeuroexplainError(
            f"Part {config.shard[0]}/{config.shard[1]} of --segments {config.segments} has none. "
            "Take fewer parts, or more segments."
        )
    size = (
        f"{stream.n_segments:,} segments"
        if stream.n_segments
        else f"less than one segment of {SEGMENT_LENGTH}"
    )
    if config.shard is not None:
        size += f", too few for part {config.shard[0]}/{config.shard[1]}"
    raise NeuroexplainError(
        f"{', '.join(config.dataset)} gave {stream.n_documents:,} documents with {stream.n_tokens:,} tokens: "
        f"{size}. Give more text."
    )


def check_tokens(token_ids: NDArray[np.uint32], subject: Subject) -> None:
    """Raise NeuroexplainError for a token id beyond the model's vocabulary."""
    largest, n_known = int(token_ids.max()), len(subject.unembedding)
    if largest >= n_known:
        raise NeuroexplainError(
            f"The tokenizer of {subject.name} gave the token {largest}, and the model knows {n_known}: "
            "the two do not belong together."
        )
