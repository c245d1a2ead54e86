"""Vectors of a run's explanations, by blocks of explanation ids.

Block b holds those of the ids from b * IDS_A_BLOCK on: a row for each vector takes ten times as long to read.
A block is current if no text of it was added or changed since; triggers of the database see to that
(store/dialect.py), so that a search need not compare all texts. In a block that is not current, the hash of
each text says which vectors hold.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neuroexplain.embedding.ranking import Int8Vectors
from neuroexplain.store.dialect import IDS_A_BLOCK
from neuroexplain.store.engine import Store
from neuroexplain.store.packing import checksum_of, pack_array, unpack_array
from neuroexplain.store.reader import Reader, reader_of
from neuroexplain.store.rows import sql_in

BLOCKS_AT_ONCE = 64  # of one reading: 64 MB with 256 dimensions


@dataclass(frozen=True)
class VectorBlock:
    """The vectors of one block, in ascending order of their explanations."""

    explanation_ids: NDArray[np.int64]  # [n]
    text_hashes: NDArray[np.uint64]  # [n]: text_hash of what was embedded
    vectors: Int8Vectors  # [n, dimensions]

    @cached_property
    def checksum(self) -> str:
        """16 hexadecimal digits that change if an explanation or its text does."""
        return checksum_of(
            pack_array("explanation_ids", self.explanation_ids) + pack_array("text_hashes", self.text_hashes)
        )


@dataclass(frozen=True, slots=True)
class BlockState:
    """What is known of a stored block without reading its vectors."""

    is_current: bool
    checksum: str


def text_hash(text: str) -> int:
    """The first 64 bits of BLAKE2b."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def list_blocks(store: Store, run_id: int, model: str) -> dict[int, BlockState]:
    """The stored blocks of a run by their number, ascending."""
    sql = "SELECT block, is_current, checksum FROM vectors WHERE run_id = :run AND model = :model"
    with store.read() as reader:
        rows = reader.rows(f"{sql} ORDER BY block", run=run_id, model=model)
    return {row.block: BlockState(bool(row.is_current), row.checksum) for row in rows}


def count_by_block(store: Store, run_id: int, first_block: int = 0) -> dict[int, int]:
    """The number of the run's explanations, failed ones too, in each block from first_block on."""
    sql = (
        f"SELECT e.id / {IDS_A_BLOCK}, count(*) FROM explanations e "
        f"WHERE e.run_id = :run AND e.id >= :first GROUP BY e.id / {IDS_A_BLOCK} ORDER BY 1"
    )
    with store.read() as reader:
        rows = reader.rows(sql, run=run_id, first=first_block * IDS_A_BLOCK)
    return {row[0]: row[1] for row in rows}


def list_texts(store: Store, run_id: int, block: int) -> list[tuple[int, str]]:
    """(id, text) of the run's explanations of one block that have a text, by id."""
    with store.read() as reader:
        return _texts(reader, run_id, block)


def load_blocks(store: Store, run_id: int, model: str, blocks: Collection[int]) -> dict[int, VectorBlock]:
    """The blocks that are stored; damaged ones are left out, since they can be made anew."""
    loaded: dict[int, VectorBlock] = {}
    numbers = sorted(blocks)
    for first in range(0, len(numbers), BLOCKS_AT_ONCE):
        part = numbers[first : first + BLOCKS_AT_ONCE]
        sql = (
            "SELECT block, dimensions, checksum, explanation_ids, text_hashes, scales, numbers FROM vectors "
            f"WHERE run_id = :run AND block {sql_in(part)} AND model = :model"
        )
        with store.read() as reader:
            for row in reader.rows(sql, run=run_id, model=model):
                block = _decode_block(row)
                if block is not None:
                    loaded[row.block] = block
    return loaded


def add_empty_blocks(store: Store, run_id: int, model: str, blocks: Sequence[int]) -> None:
    """Store blocks without vectors, which are not current. Stored ones stay.

    So an embedding that is interrupted leaves a mark wherever vectors are lacking.
    """
    from neuroexplain.store import tables as t
    from neuroexplain.store.dialect import upsert

    none = Int8Vectors(np.zeros((0, 0), np.int8), np.zeros(0, np.float32))
    empty = VectorBlock(np.zeros(0, np.int64), np.zeros(0, np.uint64), none)
    rows = [_block_row(run_id, model, block, empty, is_current=False) for block in blocks]
    if rows:
        with store.write() as connection:
            connection.execute(upsert(store.dialect, t.vectors).on_conflict_do_nothing(), rows)


def save_block(store: Store, run_id: int, model: str, number: int, block: VectorBlock) -> None:
    """Store one block in place of an earlier one.

    It is current if the texts are still those that were embedded: another process may have changed one since.
    """
    from sqlalchemy import update

    from neuroexplain.store import tables as t
    from neuroexplain.store.statements import upsert_many

    row = _block_row(run_id, model, number, block, is_current=True)
    v = t.vectors.c
    with store.write() as connection:
        upsert_many(connection, t.vectors, [row], ["run_id", "block", "model"])
        texts = _texts(reader_of(connection), run_id, number)
        hashes = {id_: text_hash(text) for id_, text in texts}
        if hashes != dict(zip(block.explanation_ids.tolist(), block.text_hashes.tolist(), strict=True)):
            of_block = v.run_id == run_id, v.block == number, v.model == model
            connection.execute(update(t.vectors).where(*of_block).values(is_current=False))


def _texts(reader: Reader, run_id: int, block: int) -> list[tuple[int, str]]:
    # `+ 0` keeps SQLite's planner from the index of the whole run.
    sql = (
        "SELECT e.id, e.text FROM explanations e WHERE e.id BETWEEN :first AND :last "
        "AND e.run_id + 0 = :run AND e.status = 'ok' AND e.text IS NOT NULL ORDER BY e.id"
    )
    first = block * IDS_A_BLOCK
    rows = reader.rows(sql, run=run_id, first=first, last=first + IDS_A_BLOCK - 1)
    return [(row.id, row.text) for row in rows]


def _decode_block(row: Any) -> VectorBlock | None:
    """None if the arrays do not fit each other."""
    try:
        ids, hashes, scales, numbers = (
            unpack_array(name, getattr(row, name))
            for name in ("explanation_ids", "text_hashes", "scales", "numbers")
        )
        vectors = Int8Vectors(numbers.reshape(len(ids), row.dimensions), scales)
    except (ValueError, TypeError):  # SQLite allows any type in a column
        return None
    block = VectorBlock(ids, hashes, vectors)
    is_whole = len(hashes) == len(scales) == len(ids) and block.checksum == row.checksum
    return block if is_whole and bool(np.isfinite(scales).all()) else None


def _block_row(
    run_id: int, model: str, number: int, block: VectorBlock, *, is_current: bool
) -> Mapping[str, Any]:
    return {
        "run_id": run_id,
        "block": number,
        "model": model,
        "is_current": is_current,
        "checksum": block.checksum,
        "dimensions": block.vectors.numbers.shape[1],
        "explanation_ids": block.explanation_ids,
        "text_hashes": block.text_hashes,
        "scales": block.vectors.scales,
        "numbers": block.vectors.numbers.reshape(-1),
    }
