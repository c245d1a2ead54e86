"""The segments that a collection visits, from a corpus that is tokenized before or while it is read.

A corpus that is visited in its own order is tokenized by a second process while segments are read from the
growing file. A process and not a thread: a thread that holds the interpreter for milliseconds would delay a
GPU's kernels.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np
from numpy.typing import NDArray

from neuroexplain.config import CollectConfig
from neuroexplain.corpus.shared_progress import Follower, SharedProgress
from neuroexplain.corpus.token_stream import TokenStream, find_tokens, lengths_path, new_file
from neuroexplain.corpus.tokenizing import growing_path, tokenizing_note, write_tokens
from neuroexplain.corpus.visiting_order import is_in_corpus_order, is_tokenized_while_read, visiting_order
from neuroexplain.errors import NeuroexplainError
from neuroexplain.runtime.progress import Progress
from neuroexplain.runtime.worker import Worker
from neuroexplain.sampling import split_segments
from neuroexplain.units import SEGMENT_LENGTH

# Segment numbers [n], their token ids [n, 128], and the places of their splits in SPLITS [n].
Batch = tuple[NDArray[np.int64], NDArray[np.uint32], NDArray[np.int8]]


class Text(Protocol):
    """The segments of a collection, or of one of its parts, in the order of visit.

    A segment's place is its index in this order, from 0.
    """

    notes: list[str]  # lines for the reader that came up while reading

    @property
    def total(self) -> int | None:
        """The number of segments; None if it is not known yet."""
        ...

    def batches(self, begin: int, end: int | None, size: int) -> Iterator[Batch]:
        """The segments at places begin..end (None: to the last), in batches of `size` or fewer."""
        ...

    def count_passages(self) -> int | None:
        """How many passages the visited segments are of (sampling.count_passages); None if not known yet."""
        ...

    def whole(self) -> TokenStream:
        """The tokens of the whole corpus, once it is tokenized."""
        ...

    def close(self) -> None:
        """End the work that still goes on for this text."""
        ...


def prepare_text(
    config: CollectConfig, tokenizer: Any, path: Path, shared: SharedProgress | None = None
) -> Generator[Progress, None, Text]:
    """The text of a collection, whose tokens are written to `path` unless they are there already.

    With `shared`, another process tokenizes, with `tokenize_for_parts`.
    """
    stream = find_tokens(path)
    if stream is None and shared is not None:
        text = GrowingText(config, path, growing_path(path), Follower(shared))
        if is_tokenized_while_read(config):
            return text
        stream = text.whole()
    if stream is None:
        yield tokenizing_note(config)
        if is_tokenized_while_read(config):
            return GrowingText.start(config, tokenizer, path)
        stream = yield from write_tokens(config, tokenizer, path)
    return WholeText(stream, config)


class WholeText:
    """A text that was tokenized before."""

    def __init__(self, stream: TokenStream, config: CollectConfig) -> None:
        self._stream = stream
        sampling = "sequential" if is_in_corpus_order(config) else config.sampling
        order = visiting_order(stream.n_segments, sampling, config.seed, config.segments)
        part, n_parts = config.shard or (1, 1)
        self._order, self._seed = order[part - 1 :: n_parts], config.seed
        self.total = len(self._order)
        self.notes: list[str] = []

    def batches(self, begin: int, end: int | None, size: int) -> Iterator[Batch]:
        end = self.total if end is None else min(end, self.total)
        for first in range(begin, end, size):
            numbers = self._order[first : min(first + size, end)]
            yield numbers, self._stream.rows(numbers), self._stream.splits(numbers, self._seed)

    def count_passages(self) -> int | None:
        return self._stream.count_passages(self._order)

    def whole(self) -> TokenStream:
        return self._stream

    def close(self) -> None:
        pass


class GrowingText:
    """A text in the corpus's own order that another process tokenizes meanwhile.

    Its tokens are at `growing` until all are there, then at `path`. Methods raise NeuroexplainError if the
    process fails.
    """

    def __init__(self, config: CollectConfig, path: Path, growing: Path, process: Worker | Follower) -> None:
        self._path, self._growing, self._process = path, growing, process
        self._seed = config.seed
        self._file: BinaryIO | None = None
        self._lengths: BinaryIO | None = None
        # Where documents begin, as far as is known: the first n_places; the array doubles when it is full.
        self._places, self._n_places = np.zeros(1 << 10, np.int64), 1
        self._n_tokens = 0  # that can be read by now
        self._stream: TokenStream | None = None
        self._part, self._n_parts = config.shard or (1, 1)
        self.total = (
            None if config.segments is None else len(range(self._part - 1, config.segments, self._n_parts))
        )
        self.notes: list[str] = []

    @classmethod
    def start(cls, config: CollectConfig, tokenizer: Any, path: Path) -> GrowingText:
        """Start the process that tokenizes."""
        growing = new_file(path)
        process = Worker("tokenizing", write_tokens, config, tokenizer, path, growing)
        return cls(config, path, growing, process)

    def batches(self, begin: int, end: int | None, size: int) -> Iterator[Batch]:
        end = self.total if end is None else end
        while end is None or begin < end:
            last = begin + size if end is None else min(begin + size, end)
            numbers = np.arange(begin, last) * self._n_parts + self._part - 1
            numbers = numbers[: self._wait_for(numbers)]
            if not len(numbers):
                return
            ids = self._rows(numbers)
            yield numbers, ids, self._splits(numbers)
            begin = last

    def count_passages(self) -> int | None:
        if self._stream is None:
            return None
        numbers = np.arange(self._part - 1, self._stream.n_segments, self._n_parts)
        return self._stream.count_passages(numbers[: self.total])

    def whole(self) -> TokenStream:
        while self._stream is None:
            self._receive()
        return self._stream

    def close(self) -> None:
        self._process.stop()
        for file in (self._file, self._lengths):
            if file is not None:
                file.close()
        if isinstance(self._process, Worker):
            self._growing.unlink(missing_ok=True)
            lengths_path(self._growing).unlink(missing_ok=True)

    def _wait_for(self, numbers: NDArray[np.int64]) -> int:
        """Wait until these segments can be read or the corpus ends; returns how many of them there are."""
        while self._stream is None and self._n_tokens < (numbers[-1] + 1) * SEGMENT_LENGTH:
            self._receive()
        return int(np.searchsorted(numbers, self._n_tokens // SEGMENT_LENGTH))

    def _rows(self, numbers: NDArray[np.int64]) -> NDArray[np.uint32]:
        """The token ids of segments that can be read, [n, 128]."""
        if self._file is None and self._stream is None:
            try:
                lengths = lengths_path(self._growing).open("rb")
                self._file, self._lengths = self._growing.open("rb"), lengths
            except FileNotFoundError:  # it was finished and moved meanwhile
                self.whole()
        if self._file is None:
            return self.whole().rows(numbers)
        size, file = 4 * SEGMENT_LENGTH, self._file.fileno()
        return np.stack(
            [np.frombuffer(os.pread(file, size, size * int(number)), "<u4") for number in numbers]
        )

    def _splits(self, numbers: NDArray[np.int64]) -> NDArray[np.int8]:
        """The splits of segments that can be read."""
        if self._lengths is None:
            return self.whole().splits(numbers, self._seed)
        lengths = np.frombuffer(
            self._lengths.read(), "<i8"
        )  # whole ones: the writer flushes between documents
        n, self._n_places = self._n_places, self._n_places + len(lengths)
        while self._n_places > len(self._places):
            self._places = np.concatenate([self._places, np.zeros_like(self._places)])
        self._places[n : self._n_places] = self._places[n - 1] + np.cumsum(lengths)
        return split_segments(self._seed, numbers, self._places[: self._n_places])

    def _receive(self) -> None:
        """Wait for the next progress of the process that tokenizes."""
        progress = self._process.receive()
        if progress is None:
            self._stream = find_tokens(self._path)
            if self._stream is None:
                raise NeuroexplainError(
                    f"The corpus's tokens have disappeared from {self._path}. Run the same command again."
                )
            self._n_tokens = self._stream.n_tokens
        elif progress.note:
            self.notes.append(progress.note)
        else:
            self._n_tokens = progress.done


def hash_text(text: Text, end: int) -> Any:
    """hashlib's SHA-256 of the token ids of the first `end` segments visited; the next ones can be added."""
    digest = hashlib.sha256()
    for _, ids, _ in text.batches(0, end, 4096):
        digest.update(ids.astype("<u4").tobytes())
    return digest
