"""The vectors of a run's explanations, kept in memory and brought up to date before a search."""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterable

import numpy as np

from neuroexplain.embedding.base import Embedder
from neuroexplain.embedding.ranking import Int8Vectors, Similarities, cosines_with, to_int8
from neuroexplain.errors import NeuroexplainError
from neuroexplain.runs import Run
from neuroexplain.runtime.progress import Progress
from neuroexplain.store.engine import Store
from neuroexplain.store.vectors import (
    VectorBlock,
    add_empty_blocks,
    count_by_block,
    list_blocks,
    list_texts,
    load_blocks,
    save_block,
    text_hash,
)

MOST_UNSTORED = 50_000  # explanations that a reader embeds for itself: a few seconds by the default table


class MeaningIndex:
    """A run's explanations by meaning. Its methods may be called from several threads."""

    def __init__(self, store: Store, run: Run, embedder: Embedder) -> None:
        self.run, self.embedder = run, embedder
        self._store = store
        self._blocks: dict[int, VectorBlock] = {}
        self._lock = threading.Lock()

    @property
    def n_bytes(self) -> int:
        """The memory of the vectors."""
        return sum(b.vectors.numbers.nbytes + b.vectors.scales.nbytes for b in self._blocks.values())

    def refresh(self) -> None:
        """Bring the vectors up to date without a word: see steps."""
        for _ in self.steps():
            pass

    def steps(self) -> Generator[Progress]:
        """Bring the vectors up to date, step by step: read the stored ones, and embed new and changed texts.

        New vectors are stored if the store can be written to, each block by itself, so that an interrupted
        embedding goes on where it was. Raises NeuroexplainError if it cannot, and more than MOST_UNSTORED are
        lacking; and if a text cannot be embedded.
        """
        with self._lock:
            yield from self._steps()

    def similarities(self, text: str) -> Similarities:
        """The cosines of all explanations with a text.

        Raises NeuroexplainError if the embedder gives other dimensions than those of the stored vectors, and
        if the text has no word.
        """
        text = text.encode("utf-8", "replace").decode()  # without lone surrogates, which no tokenizer takes
        if not text.strip():
            raise NeuroexplainError(
                'There is nothing to search for. Give a text:  --like "words about the sea"'
            )
        vector = self.embedder.embed([text])[0]
        blocks = [block for _, block in sorted(self._blocks.items()) if len(block.explanation_ids)]
        for block in blocks:
            if block.vectors.numbers.shape[1] != len(vector):
                raise NeuroexplainError(
                    f"The vectors of {self.embedder.model} that {self._store.name} holds have "
                    f"{block.vectors.numbers.shape[1]} dimensions, and it gives {len(vector)} now.\n"
                    "Name another model:  --embedding NAME|URL"
                )
        ids = [np.zeros(0, np.int64), *(block.explanation_ids for block in blocks)]
        return Similarities(text, np.concatenate(ids), cosines_with([b.vectors for b in blocks], vector))

    def _steps(self) -> Generator[Progress]:
        run_id, model = self.run.id, self.embedder.model
        stored = list_blocks(self._store, run_id, model)
        outdated = {number for number, state in stored.items() if not state.is_current}
        if outdated or not stored:
            outdated |= set(count_by_block(self._store, run_id, max(stored, default=-1) + 1))
        held = {number: block.checksum for number, block in self._blocks.items()}
        needed = [n for n, state in stored.items() if n not in outdated and held.get(n) != state.checksum]
        outdated_stored = [n for n in outdated if n in stored and n not in held]
        loaded = load_blocks(self._store, run_id, model, [*needed, *outdated_stored])
        self._blocks.update(loaded)
        outdated |= {number for number in needed if number not in loaded}  # damaged
        if outdated:
            yield from self._embed_blocks(sorted(outdated))

    def _embed_blocks(self, numbers: list[int]) -> Generator[Progress]:
        counts = count_by_block(self._store, self.run.id, numbers[0])
        total, done, keeps = sum(counts.get(n, 0) for n in numbers), 0, self._store.can_write
        if not keeps and total > MOST_UNSTORED:
            raise NeuroexplainError(
                f"Up to {total:,} explanations have no vector of {self.embedder.model} yet, and "
                f"{self._store.name} cannot be written to here.\n"
                f"Store them once:  neuroexplain query --db {self._store.name} "
                f"--run {self.run.id} --like TEXT"
            )
        if keeps:
            add_empty_blocks(self._store, self.run.id, self.embedder.model, numbers)
        for number in numbers:
            yield Progress("embedding", done, total, "explanations")
            texts = list_texts(self._store, self.run.id, number)
            block = embed_block(texts, self._blocks.get(number), self.embedder)
            if keeps:
                save_block(self._store, self.run.id, self.embedder.model, number, block)
            self._blocks[number] = block
            done += counts.get(number, 0)
        yield Progress("embedding", done, total, "explanations")


def embed_block(
    texts: Iterable[tuple[int, str]], earlier: VectorBlock | None, embedder: Embedder
) -> VectorBlock:
    """The block of these (id, text), by id. Texts that are as they were keep their vectors of `earlier`."""
    pairs = [(id_, text, text_hash(text)) for id_, text in texts]
    places: dict[tuple[int, int], int] = {}
    if earlier is not None:
        keys = zip(earlier.explanation_ids.tolist(), earlier.text_hashes.tolist(), strict=True)
        places = {key: place for place, key in enumerate(keys)}
    new = [text for id_, text, hash_ in pairs if (id_, hash_) not in places]
    embedded = to_int8(embedder.embed(new)) if new else None
    if earlier is not None and embedded is not None and places:
        if earlier.vectors.numbers.shape[1] != embedded.numbers.shape[1]:  # another model of this name
            return embed_block(((id_, text) for id_, text, _ in pairs), None, embedder)
        numbers = np.concatenate([earlier.vectors.numbers, embedded.numbers])
        scales = np.concatenate([earlier.vectors.scales, embedded.scales])
    else:
        source = embedded or (earlier.vectors if earlier is not None else None)
        numbers = np.zeros((0, 0), np.int8) if source is None else source.numbers
        scales = np.zeros(0, np.float32) if source is None else source.scales
    n_earlier, n_new, order = len(places), 0, []
    for id_, _, hash_ in pairs:
        place = places.get((id_, hash_))
        order.append(n_earlier + n_new if place is None else place)
        n_new += place is None
    return VectorBlock(
        np.array([id_ for id_, _, _ in pairs], np.int64),
        np.array([hash_ for _, _, hash_ in pairs], np.uint64),
        Int8Vectors(numbers[order], scales[order]),
    )
