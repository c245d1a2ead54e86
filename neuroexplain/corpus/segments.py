"""Token ids -> segments on a grid of 128 over the stream of all documents."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neuroexplain.types import SEGMENT_LENGTH, Segment

DOCUMENTS_AT_ONCE = 64  # tokenized together: fast tokenizers use the cores


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
    """A whole corpus as tokens in a temporary file, so that memory does not grow with it: any segment can be visited.

    The documents' tokens are joined and cut every 128; a last, incomplete segment is dropped. Documents count from 0.
    """

    def __init__(self, token_ids: Iterable[NDArray[np.uint32]]) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115  (open as long as the stream is)
        lengths = []
        for ids in token_ids:
            self._file.write(ids.astype("<u4").tobytes())
            lengths.append(len(ids))
        self._file.flush()
        self._starts = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])  # of each document, and the end
        self.n_documents = len(lengths)
        self.n_tokens = int(self._starts[-1])
        self.n_segments = self.n_tokens // SEGMENT_LENGTH
        self._ids = np.memmap(self._file, "<u4", "r") if self.n_tokens else np.zeros(0, "<u4")

    def segment(self, number: int) -> Segment:
        """Grid cell `number`."""
        begin = number * SEGMENT_LENGTH
        return Segment(number, np.array(self._ids[begin : begin + SEGMENT_LENGTH], np.uint32))

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


def visiting_order(n_segments: int, sampling: str, seed: int, wanted: int | None) -> NDArray[np.int64]:
    """Which grid cells are visited, in order: all or the first `wanted` of a seeded permutation or of the stream."""
    order = np.random.default_rng(seed).permutation(n_segments) if sampling == "random" else np.arange(n_segments)
    return order[:wanted].astype(np.int64)
