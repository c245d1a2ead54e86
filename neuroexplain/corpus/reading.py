"""The corpus as the segments that a collection visits: tokenized before, or while they are read."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import time
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np
from numpy.typing import NDArray

from neuroexplain.config import CollectConfig
from neuroexplain.corpus.documents import find_files, read_documents
from neuroexplain.corpus.token_stream import (
    DOCUMENTS_AT_ONCE,
    TokenStream,
    TokenWriter,
    find_tokens,
    new_file,
    tokenize,
    visiting_order,
)
from neuroexplain.errors import NeuroexplainError
from neuroexplain.runtime.progress import Progress
from neuroexplain.runtime.worker import Worker
from neuroexplain.subject.load import load_tokenizer, tokenizer_sha256
from neuroexplain.units import SEGMENT_LENGTH

LARGE = 16 * 2**20  # bytes of files that take some seconds to tokenize
Batch = tuple[NDArray[np.int64], NDArray[np.uint32]]  # segment numbers [n], their token ids [n, 128]


class Text(Protocol):
    """The segments of a collection, or of its part, in the order in which they are visited."""

    said: list[str]  # what a person should read of it, noted meanwhile

    @property
    def total(self) -> int | None:
        """How many there are; None where that is not known yet."""
        ...

    def batches(self, begin: int, end: int | None, size: int) -> Iterator[Batch]:
        """Those from place `begin` on to place `end`, `size` at once; the last batch can be smaller."""
        ...

    def whole(self) -> TokenStream:
        """The corpus; waits until it is all there."""
        ...

    def close(self) -> None:
        """Stop what still works on it."""
        ...


class WholeText:
    """A corpus that is tokenized already."""

    def __init__(self, stream: TokenStream, config: CollectConfig) -> None:
        self._stream = stream
        sampling = "sequential" if is_in_order(config) else config.sampling
        order = visiting_order(stream.n_segments, sampling, config.seed, config.segments)
        first, of = config.shard or (1, 1)
        self._order = order[first - 1 :: of]
        self.total = len(self._order)
        self.said: list[str] = []

    def batches(self, begin: int, end: int | None, size: int) -> Iterator[Batch]:
        end = self.total if end is None else min(end, self.total)
        for first in range(begin, end, size):
            numbers = self._order[first : min(first + size, end)]
            yield numbers, self._stream.rows(numbers)

    def whole(self) -> TokenStream:
        return self._stream

    def close(self) -> None:
        pass


class LiveText:
    """A corpus that another process tokenizes, visited from its begin on as soon as there is something to read.

    Its tokens are at `path` when all are there, until then at `unfinished`. Methods raise NeuroexplainError where the process
    fails.
    """

    def __init__(
        self, config: CollectConfig, path: Path, unfinished: Path, process: Worker | Follower
    ) -> None:
        self._path, self._unfinished, self._process = path, unfinished, process
        self._file: BinaryIO | None = None
        self._n_tokens = 0  # that can be read by now
        self._stream: TokenStream | None = None
        self._first, self._of = config.shard or (1, 1)
        self.total = (
            None if config.segments is None else len(range(self._first - 1, config.segments, self._of))
        )
        self.said: list[str] = []

    @classmethod
    def start(cls, config: CollectConfig, tokenizer: Any, path: Path) -> LiveText:
        """With a process of its own."""
        unfinished = new_file(path)
        return cls(
            config, path, unfinished, Worker("tokenizing", write_tokens, config, tokenizer, path, unfinished)
        )

    def batches(self, begin: int, end: int | None, size: int) -> Iterator[Batch]:
        end = self.total if end is None else end
        while end is None or begin < end:
            last = begin + size if end is None else min(begin + size, end)
            numbers = np.arange(begin, last) * self._of + self._first - 1
            numbers = numbers[: self._wait_for(numbers)]
            if not len(numbers):
                return
            yield numbers, self._rows(numbers)
            begin = last

    def _wait_for(self, numbers: NDArray[np.int64]) -> int:
        """How many of the segments there are, once all are there or no more will come."""
        while self._stream is None and self._n_tokens < (numbers[-1] + 1) * SEGMENT_LENGTH:
            self._listen()
        return int(np.searchsorted(numbers, self._n_tokens // SEGMENT_LENGTH))

    def _rows(self, numbers: NDArray[np.int64]) -> NDArray[np.uint32]:
        if self._file is None and self._stream is None:
            try:
                self._file = self._unfinished.open("rb")
            except FileNotFoundError:  # it has its place by now
                self.whole()
        if self._file is None:
            return self.whole().rows(numbers)
        size, file = 4 * SEGMENT_LENGTH, self._file.fileno()
        return np.stack(
            [np.frombuffer(os.pread(file, size, size * int(number)), "<u4") for number in numbers]
        )

    def _listen(self) -> None:
        told = self._process.hear()
        if told is None:
            self._stream = find_tokens(self._path)
            if self._stream is None:
                raise NeuroexplainError(
                    f"The corpus's tokens are gone from {self._path}. Run the same command again."
                )
            self._n_tokens = self._stream.n_tokens
        elif told.note:
            self.said.append(told.note)
        else:
            self._n_tokens = told.done

    def whole(self) -> TokenStream:
        while self._stream is None:
            self._listen()
        return self._stream

    def close(self) -> None:
        self._process.stop()
        if self._file is not None:
            self._file.close()
        if isinstance(self._process, Worker):
            self._unfinished.unlink(missing_ok=True)


class Tally:
    """How far tokenizing has come, for processes that are given it as they start: it lies in memory that they share."""

    def __init__(self) -> None:
        self._shared = multiprocessing.get_context("spawn").RawArray(
            "q", 2
        )  # tokens that can be read; how it stands

    def set(self, n_tokens: int | None = None, state: int | None = None) -> None:
        for place, value in enumerate((n_tokens, state)):
            if value is not None:
                self._shared[place] = value

    def get(self) -> tuple[int, int]:
        n_tokens, state = self._shared
        return n_tokens, state


WHOLE, BROKEN_OFF = 1, 2  # states of a Tally


class Follower:
    """Hears of tokenizing what its Tally says, as one hears a Worker."""

    def __init__(self, tally: Tally) -> None:
        self._tally, self._n_heard = tally, 0

    def hear(self) -> Progress | None:
        """Wait for more tokens; None when all are there. Raises NeuroexplainError where no more will come."""
        parent = multiprocessing.parent_process()
        while True:
            n_tokens, state = self._tally.get()
            if state == WHOLE:
                return None
            if state == BROKEN_OFF or (parent is not None and not parent.is_alive()):
                raise NeuroexplainError("The corpus is not tokenized to its end. Run the same command again.")
            if n_tokens > self._n_heard:
                self._n_heard = n_tokens
                return Progress("tokenizing", n_tokens, unit="tokens")
            time.sleep(0.02)

    def stop(self) -> None:
        """Others tokenize, and go on."""


def prepare_text(
    config: CollectConfig, tokenizer: Any, path: Path, tally: Tally | None = None
) -> Generator[Progress, None, Text]:
    """The text to collect from, its tokens at `path` when they are all there.

    Where segments are visited in the corpus's own order, reading can begin long before. With a tally another process tokenizes,
    as `tokenize_for_parts` does.
    """
    stream = find_tokens(path)
    if stream is None and tally is not None:
        text = LiveText(config, path, _unfinished(path), Follower(tally))
        if is_read_live(config):
            return text
        stream = text.whole()
    if stream is None:
        yield Progress("tokenizing", note=_tokenizing(config))
        if is_read_live(config):
            return LiveText.start(config, tokenizer, path)
        stream = yield from write_tokens(config, tokenizer, path)
    return WholeText(stream, config)


def tokenize_for_parts(config: CollectConfig, folder: Path, tally: Tally) -> Generator[Progress]:
    """Tokenize the corpus for all parts that collect in the folder."""
    tokenizer = load_tokenizer(config.model, config.revision)
    path = tokens_path(folder, config, tokenizer)
    if find_tokens(path) is None:
        yield Progress("tokenizing", note=_tokenizing(config))
        for told in write_tokens(config, tokenizer, path, _unfinished(path)):
            if told.note is None:
                tally.set(n_tokens=told.done)
            yield told
    tally.set(state=WHOLE)


def _tokenizing(config: CollectConfig) -> str:
    return f"Tokenizing the corpus {'while it is read ' if is_read_live(config) else ''}..."


def _unfinished(path: Path) -> Path:
    """Where tokens grow that a process writes and its siblings read: another for each parent, as one may be killed."""
    parent = multiprocessing.parent_process()
    return path.with_name(f"{path.name}.{os.getpid() if parent is None else parent.pid}.unfinished")


def write_tokens(
    config: CollectConfig, tokenizer: Any, path: Path, unfinished: Path | None = None
) -> Generator[Progress, None, TokenStream]:
    """Tokenize the corpus into the file. With `unfinished`, what progress tells of can be read there."""
    streamed = find_files(config.dataset) is None
    shuffle = config.seed if streamed and config.sampling == "random" else None
    documents = read_documents(
        config.dataset, config.dataset_config, config.split, config.text_column, shuffle
    )
    tokens = tokenize(documents, tokenizer)
    wanted = (
        config.segments * SEGMENT_LENGTH if config.segments is not None and is_sequential(config) else None
    )
    if wanted is not None:
        tokens = _until(tokens, wanted)
    began = time.monotonic()
    with TokenWriter(path, unfinished) as writer:
        for number, ids in enumerate(tokens, 1):
            writer.add(ids)
            if number % DOCUMENTS_AT_ONCE:
                continue  # the others of those that are tokenized together are there already
            if unfinished is not None:
                writer.flush()
            yield Progress("tokenizing", writer.n_tokens, wanted, "tokens")
        stream = writer.finish()
    took = time.monotonic() - began
    yield Progress("tokenizing", note=f"Tokenized {stream.n_tokens:,} tokens in {took:.1f} s.")
    if config.segments is not None and stream.n_segments < config.segments:
        found = f"The corpus has {stream.n_segments:,} segments of 128 tokens, not {config.segments:,}: all are read."
        yield Progress("tokenizing", note=found)
    return stream


def _until(tokens: Iterator[Any], n_tokens: int) -> Iterator[Any]:
    seen = 0
    for ids in tokens:
        yield ids
        seen += len(ids)
        if seen >= n_tokens:
            return


def hash_text(text: Text, end: int) -> Any:
    """SHA-256, to go on with, of the token ids of the first `end` segments visited."""
    digest = hashlib.sha256()
    for _, ids in text.batches(0, end, 4096):
        digest.update(ids.astype("<u4").tobytes())
    return digest


def is_read_live(config: CollectConfig) -> bool:
    """Whether the corpus's own order is visited and tokenizing takes longer than to start a process for it."""
    files = find_files(config.dataset)
    return is_sequential(config) or (
        is_in_order(config) and sum(file.stat().st_size for file in files or ()) >= LARGE
    )


def is_in_order(config: CollectConfig) -> bool:
    """Whether segments are visited as the corpus gives them. Where all are read the order decides nothing."""
    return config.segments is None or is_sequential(config)


def is_sequential(config: CollectConfig) -> bool:
    """Whether those that are read are the corpus's first: a streamed one is shuffled by its documents."""
    return config.sampling == "sequential" or find_files(config.dataset) is None


def tokens_path(folder: Path, config: CollectConfig, tokenizer: Any) -> Path:
    """Where in the folder this corpus's tokens lie while a run is unfinished: named by all that decides what they are.

    A local file is known by its size and time; a streamed data set is taken to be the same for as long as the file lies there.
    """
    files = find_files(config.dataset)
    source: Any = [config.dataset, config.dataset_config, config.split, config.text_column]
    if files is not None:
        source += [(str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    if is_sequential(config):
        source += [config.segments, config.sampling, config.seed]
    backend = getattr(tokenizer, "backend_tokenizer", None)
    source += [tokenizer_sha256(tokenizer) if backend is None else backend.to_str(), tokenizer.eos_token_id]
    digest = hashlib.sha256(json.dumps(source).encode()).hexdigest()[:16]
    return folder / f"neuroexplain-{digest}.tokens"
