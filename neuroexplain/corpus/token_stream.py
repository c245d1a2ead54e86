"""Token ids -> segments on a grid of 128 over the stream of all documents, in a file."""

from __future__ import annotations

import glob
import os
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from neuroexplain.errors import NeuroexplainError
from neuroexplain.evidence import Segment
from neuroexplain.units import SEGMENT_LENGTH

DOCUMENTS_AT_ONCE = 64  # tokenized together: fast tokenizers use the cores
STALE = 24 * 3600  # seconds after which who wrote a file of tokens was killed
MARK = 0x6E65_7572_6F6E_7332  # what a whole file of tokens ends with
FOOTER = np.dtype([("n_tokens", "<i8"), ("n_documents", "<i8"), ("mark", "<i8")])


def tokenize(documents: Iterable[str], tokenizer: Any) -> Iterator[NDArray[np.uint32]]:
    """Each document's token ids as the tokenizer gives them (with the BOS that it adds), then its EOS where it has one."""
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    batch: list[str] = []

    def flush() -> Iterator[NDArray[np.uint32]]:
        if batch:
            for ids in tokenizer(batch, verbose=False).input_ids:
                yield np.array([*ids, *end], np.uint32)
            batch.clear()

    for document in documents:
        batch.append(document.encode("utf-8", "replace").decode("utf-8"))  # lone surrogates stop a tokenizer
        if len(batch) == DOCUMENTS_AT_ONCE:
            yield from flush()
    yield from flush()


class TokenStream:
    """A whole corpus as tokens in a file, so that memory does not grow with it: any segment can be visited.

    The documents' tokens are joined and cut every 128; a last, incomplete segment is dropped. Documents count from 0.
    """

    def __init__(self, file: BinaryIO) -> None:
        """Open what TokenWriter wrote; the file must stay open. Raises ValueError where it is not whole."""
        size = file.seek(0, os.SEEK_END)
        if size < FOOTER.itemsize:
            raise ValueError("no footer")
        (footer,) = np.memmap(file, FOOTER, "r", offset=size - FOOTER.itemsize)
        self.n_tokens, self.n_documents = int(footer["n_tokens"]), int(footer["n_documents"])
        if footer["mark"] != MARK or size != 4 * self.n_tokens + 8 * self.n_documents + FOOTER.itemsize:
            raise ValueError("cut off")
        self.n_segments = self.n_tokens // SEGMENT_LENGTH
        self._ids = (
            np.memmap(file, "<u4", "r", shape=(self.n_tokens,)) if self.n_tokens else np.zeros(0, "<u4")
        )
        file.seek(4 * self.n_tokens)
        lengths = np.frombuffer(file.read(8 * self.n_documents), "<i8")
        self._starts = np.concatenate([[0], np.cumsum(lengths)])  # of each document, and the end

    @classmethod
    def of(cls, token_ids: Iterable[NDArray[np.uint32]]) -> TokenStream:
        """The documents' tokens in a temporary file."""
        with TokenWriter(None) as writer:
            for ids in token_ids:
                writer.add(ids)
            return writer.finish()

    def segment(self, number: int) -> Segment:
        """Grid cell `number`."""
        begin = number * SEGMENT_LENGTH
        return Segment(number, np.array(self._ids[begin : begin + SEGMENT_LENGTH], np.uint32))

    def rows(self, numbers: NDArray[np.int64]) -> NDArray[np.uint32]:
        """The token ids of many grid cells, [n, 128]."""
        grid = self._ids[: self.n_segments * SEGMENT_LENGTH].reshape(self.n_segments, SEGMENT_LENGTH)
        return grid[numbers].astype(np.uint32)

    def locate(
        self, segments: NDArray[np.int64], positions: NDArray[np.int64], starts: NDArray[np.uint8]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.uint32]]:
        """For tokens at `positions` of `segments`: their documents, where in those the token at `starts` lies, their ids.

        All arrays have one shape. The offset is negative where the record begins in the document before.
        """
        begins = segments.astype(np.int64) * SEGMENT_LENGTH
        documents = np.searchsorted(self._starts, begins + positions, "right") - 1
        ids = self._ids[begins + positions].astype(np.uint32)
        return documents, begins + starts - self._starts[documents], ids


class TokenWriter:
    """Writes documents' tokens to a file that is there when it is whole; without a path, to a temporary one.

    Until then it grows at `unfinished`, where others can read what is flushed. Raises NeuroexplainError where it cannot be
    written.
    """

    def __init__(self, path: Path | None, unfinished: Path | None = None) -> None:
        self._path, self._new = path, None
        try:
            if path is None:
                self._file: BinaryIO = tempfile.TemporaryFile()  # noqa: SIM115
            else:
                self._new = unfinished or new_file(path)
                self._file = self._new.open("w+b")
        except OSError as error:
            raise _cannot_write(path, error) from error
        self._lengths: list[int] = []
        self.n_tokens = 0

    def __enter__(self) -> TokenWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._new is not None:
            self._new.unlink(missing_ok=True)  # it has its place by now, or is not whole

    def add(self, ids: NDArray[np.uint32]) -> None:
        """The next document's tokens."""
        self._write(ids.astype("<u4").tobytes())
        self._lengths.append(len(ids))
        self.n_tokens += len(ids)

    def finish(self) -> TokenStream:
        """All documents are there: put the file in its place."""
        self._write(np.array(self._lengths, "<i8").tobytes())
        self._write(np.array((self.n_tokens, len(self._lengths), MARK), FOOTER).tobytes())
        self.flush()
        try:
            if self._path is not None and self._new is not None:
                self._new.replace(self._path)
        except OSError as error:
            raise _cannot_write(self._path, error) from error
        return TokenStream(self._file)

    def flush(self) -> None:
        """Let others read what was added."""
        try:
            self._file.flush()
        except OSError as error:
            raise _cannot_write(self._path, error) from error

    def _write(self, data: bytes) -> None:
        try:
            self._file.write(data)
        except OSError as error:
            raise _cannot_write(self._path, error) from error


def new_file(path: Path) -> Path:
    """An empty file of a new name beside the path; those that nobody has written to for a day go.

    Raises NeuroexplainError where there can be none.
    """
    try:
        for left in path.parent.glob(f"{glob.escape(path.name)}.*"):
            if time.time() - left.stat().st_mtime > STALE:
                left.unlink(missing_ok=True)
        number, name = tempfile.mkstemp(prefix=path.name + ".", dir=path.parent)
    except OSError as error:
        raise _cannot_write(path, error) from error
    os.close(number)
    return Path(name)


def _cannot_write(path: Path | None, error: OSError) -> NeuroexplainError:
    where = tempfile.gettempdir() if path is None else path.parent
    return NeuroexplainError(
        f"Could not write the corpus's tokens (4 bytes each) to {where}: {error.strerror}. Make room."
    )


def find_tokens(path: Path) -> TokenStream | None:
    """What a TokenWriter left there; None where there is nothing, or nothing whole."""
    try:
        return TokenStream(path.open("rb"))
    except (OSError, ValueError):
        return None


def visiting_order(n_segments: int, sampling: str, seed: int, wanted: int | None) -> NDArray[np.int64]:
    """Which grid cells are visited, in order: all or the first `wanted` of a seeded permutation or of the stream."""
    order = (
        np.random.default_rng(seed).permutation(n_segments) if sampling == "random" else np.arange(n_segments)
    )
    return order[:wanted].astype(np.int64)
