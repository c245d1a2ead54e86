"""A corpus as a file of token ids, cut into segments on a grid of 128 tokens.

The file holds every document's token ids joined (uint32), the documents' lengths (int64), and a footer that
tells a whole file from one that was cut off. Memory does not grow with the corpus, and segments can be
visited in any order.
"""

from __future__ import annotations

import glob
import os
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from neuroexplain.errors import NeuroexplainError
from neuroexplain.evidence import SPLITS, Segment
from neuroexplain.sampling import NO_SPLIT, count_passages, split_segments
from neuroexplain.units import SEGMENT_LENGTH

STALE = 24 * 3600  # seconds without a write after which the writer must have been killed
SEGMENTS_AT_ONCE = 4096  # in memory, when segments are given out
MARK = 0x6E65_7572_6F6E_7332  # the last 8 bytes of a whole file
FOOTER = np.dtype([("n_tokens", "<i8"), ("n_documents", "<i8"), ("mark", "<i8")])


class TokenStream:
    """All tokens of a corpus, in a file, and the segments that they make.

    Segment n holds the tokens from 128 n on; a last, incomplete segment is dropped. Documents count from 0.
    """

    def __init__(self, file: BinaryIO) -> None:
        """Read what TokenWriter wrote. The file must stay open. Raises ValueError if it is not whole."""
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
        self._starts = np.concatenate([[0], np.cumsum(lengths)])  # of each document, and the end of the last

    @classmethod
    def of(cls, token_ids: Iterable[NDArray[np.uint32]]) -> TokenStream:
        """The documents' tokens in a temporary file."""
        with TokenWriter(None) as writer:
            for ids in token_ids:
                writer.add(ids)
            return writer.finish()

    def count_passages(self, numbers: NDArray[np.int64]) -> int:
        """How many passages the segments are of: see sampling.count_passages."""
        return count_passages(numbers, self._starts[:-1])

    def segments(self, numbers: NDArray[np.int64], seed: int) -> Iterator[Segment]:
        """The segments of these numbers, with the splits that they have by the seed."""
        for batch in np.array_split(numbers, -(-len(numbers) // SEGMENTS_AT_ONCE) or 1):
            rows = zip(batch.tolist(), self.rows(batch), self.splits(batch, seed).tolist(), strict=True)
            for number, token_ids, code in rows:
                yield Segment(number, token_ids, None if code == NO_SPLIT else SPLITS[code])

    def rows(self, numbers: NDArray[np.int64]) -> NDArray[np.uint32]:
        """The token ids of n segments, [n, 128]."""
        grid = self._ids[: self.n_segments * SEGMENT_LENGTH].reshape(self.n_segments, SEGMENT_LENGTH)
        return grid[numbers].astype(np.uint32)

    def splits(self, numbers: NDArray[np.int64], seed: int) -> NDArray[np.int8]:
        """The split of each segment as its place in SPLITS, [n]; NO_SPLIT if it has none."""
        return split_segments(seed, numbers, self._starts[:-1])

    def locate(
        self, segments: NDArray[np.int64], positions: NDArray[np.int64], starts: NDArray[np.uint8]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.uint32]]:
        """Where in the corpus records lie: (documents, offsets, token ids), all of the arguments' shape.

        A record begins at the token `starts` of its segment and has its peak at `positions`. It belongs to
        the document of its peak; the offset is that of its first token in that document, negative if the
        record begins in the document before. The token ids are those of the peaks.
        """
        begins = segments.astype(np.int64) * SEGMENT_LENGTH
        documents = np.searchsorted(self._starts, begins + positions, "right") - 1
        ids = self._ids[begins + positions].astype(np.uint32)
        return documents, begins + starts - self._starts[documents], ids


class TokenWriter:
    """Writes documents' tokens to a file that appears at `path` when it is whole.

    Without a path it is a temporary file. Until then the file grows at `growing`, where others can read what
    is flushed, and the lengths of the documents in a second file, `lengths_path(growing)`. Methods raise
    NeuroexplainError if a file cannot be written.
    """

    def __init__(self, path: Path | None, growing: Path | None = None) -> None:
        self._path, self._growing = path, None
        self._lengths_file: BinaryIO | None = None
        try:
            if path is None:
                self._file: BinaryIO = tempfile.TemporaryFile()  # noqa: SIM115
            else:
                self._growing = growing or new_file(path)
                self._file = self._growing.open("w+b")
            if growing is not None:
                self._lengths_file = lengths_path(growing).open("wb")
        except OSError as error:
            raise _cannot_write(path, error) from error
        self._lengths: list[int] = []
        self.n_tokens = 0

    def __enter__(self) -> TokenWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._growing is not None:
            self._growing.unlink(missing_ok=True)  # a whole file has been moved away from there
        if self._growing is not None and self._lengths_file is not None:
            self._lengths_file.close()
            lengths_path(self._growing).unlink(missing_ok=True)

    def add(self, ids: NDArray[np.uint32]) -> None:
        """Write the next document's tokens."""
        self._write(ids.astype("<u4").tobytes())
        if self._lengths_file is not None:
            self._write(np.array([len(ids)], "<i8").tobytes(), self._lengths_file)
        self._lengths.append(len(ids))
        self.n_tokens += len(ids)

    def finish(self) -> TokenStream:
        """Write the end of the file and move it to its path."""
        self._write(np.array(self._lengths, "<i8").tobytes())
        self._write(np.array((self.n_tokens, len(self._lengths), MARK), FOOTER).tobytes())
        self.flush()
        try:
            if self._path is not None and self._growing is not None:
                self._growing.replace(self._path)
        except OSError as error:
            raise _cannot_write(self._path, error) from error
        return TokenStream(self._file)

    def flush(self) -> None:
        """Let other processes read what was added."""
        try:
            self._file.flush()
            if self._lengths_file is not None:
                self._lengths_file.flush()
        except OSError as error:
            raise _cannot_write(self._path, error) from error

    def _write(self, data: bytes, file: BinaryIO | None = None) -> None:
        try:
            (file or self._file).write(data)
        except OSError as error:
            raise _cannot_write(self._path, error) from error


def lengths_path(growing: Path) -> Path:
    """Where the documents' lengths (int64) grow beside a growing file of tokens."""
    return growing.with_name(growing.name + ".lengths")


def find_tokens(path: Path) -> TokenStream | None:
    """The tokens that a TokenWriter left at the path; None if there is no file, or no whole one."""
    try:
        return TokenStream(path.open("rb"))
    except (OSError, ValueError):
        return None


def new_file(path: Path) -> Path:
    """An empty file of a new name beside the path. Files of killed writers, a day old, are removed.

    Raises NeuroexplainError if no file can be created.
    """
    try:
        for left in path.parent.glob(f"{glob.escape(path.name)}.*"):
            if time.time() - left.stat().st_mtime > STALE:
                left.unlink(missing_ok=True)
        descriptor, name = tempfile.mkstemp(prefix=path.name + ".", dir=path.parent)
    except OSError as error:
        raise _cannot_write(path, error) from error
    os.close(descriptor)
    return Path(name)


def _cannot_write(path: Path | None, error: OSError) -> NeuroexplainError:
    folder = tempfile.gettempdir() if path is None else path.parent
    return NeuroexplainError(
        f"Could not write the corpus's tokens (4 bytes each) to {folder}: {error.strerror}. Make room."
    )
