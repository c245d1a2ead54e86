"""Pack arrays into bytes without loss: activations in the run's dtype, token ids in 3 bytes (pure)."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

WIDTHS = {"float32": 4, "float16": 2, "bfloat16": 2}  # bytes of one activation
DTYPES = {  # of the other packed columns, by name; little-endian
    "segments": "<u4",
    "starts": "u1",
    "documents": "<i4",
    "token_offsets": "<i4",
    "promoted_ids": "<u4",
    "promoted_logits": "<f4",
    "suppressed_ids": "<u4",
    "suppressed_logits": "<f4",
    "kinds": "u1",  # index in units.PREDICTED_KINDS
    "ranks": "u1",
    "firsts": "u1",
    "counts": "u1",
    "sizes": "<f4",
    "thresholds": "<f8",
    "explanation_ids": "<i8",
    "text_hashes": "<u8",
    "scales": "<f4",
    "numbers": "i1",
    "records": "<u2",
    "positions": "u1",
    "histogram": "<u4",
    "nearest_units": "<u4",
    "nearest_cosines": "<f4",
    "guesses": "<f4",
    "reasons": "u1",  # index in look_alikes.REASONS
    "others": "<u4",
}


MOST_PACKED = 1 << 27  # bytes of a background's predictions: a blob that unpacks to more is no such blob


def pack_background(ranks: NDArray[Any], firsts: NDArray[Any], values: bytes) -> bytes:
    """What was predicted of a background's records: ranks, first tokens and packed values, compressed.

    Ranks ascend, and follow each other where all of a background was read.
    """
    steps = np.diff(ranks.astype("<u2"), prepend=np.array(0, "<u2")).astype("<u2")
    n = np.array(len(ranks), "<u4")
    return zlib.compress(n.tobytes() + steps.tobytes() + firsts.astype("u1").tobytes() + values)


def unpack_background(data: bytes) -> tuple[list[int], list[int], bytes]:
    """The inverse of pack_background. Raises ValueError if the blob is damaged."""
    opened = zlib.decompressobj()
    try:
        unpacked = opened.decompress(data, MOST_PACKED)
    except zlib.error as error:
        raise ValueError(f"its background cannot be read: {error}") from error
    if not opened.eof or len(unpacked) < 4:
        raise ValueError("its background is cut off")
    n = int(np.frombuffer(unpacked, "<u4", 1)[0])
    if len(unpacked) < 4 + 3 * n:
        raise ValueError("its background is cut off")
    ranks = np.cumsum(np.frombuffer(unpacked, "<u2", n, 4), dtype=np.int64)
    firsts = np.frombuffer(unpacked, "u1", n, 4 + 2 * n)
    return ranks.tolist(), firsts.tolist(), unpacked[4 + 3 * n :]


def pack_array(column: str, values: NDArray[Any]) -> bytes:
    """The bytes of an array in the dtype of its column."""
    return np.ascontiguousarray(values, dtype=DTYPES[column]).tobytes()


def unpack_array(column: str, data: bytes) -> NDArray[Any]:
    """The array of a packed column, [n]."""
    return np.frombuffer(data, DTYPES[column])


def checksum_of(data: bytes) -> str:
    """16 hexadecimal digits: the first 64 bits of BLAKE2b."""
    return hashlib.blake2b(data, digest_size=8).hexdigest()


def pack_activations(values: NDArray[np.float32], dtype: str) -> bytes:
    """The little-endian bytes of `values` in `dtype`. Raises ValueError if a value would be rounded."""
    values = np.ascontiguousarray(values, dtype="<f4")
    if dtype == "float32":
        return values.tobytes()
    if dtype == "bfloat16":
        words = values.reshape(-1).view("<u4")
        if int(np.bitwise_or.reduce(words)) & 0xFFFF:
            raise ValueError("an activation is not a bfloat16 value")
        return words.view("<u2")[1::2].tobytes()
    rounded = values.astype("<f2")
    if not np.array_equal(rounded.astype("<f4"), values):
        raise ValueError("an activation is not a float16 value")
    return rounded.tobytes()


def unpack_activations(data: bytes, dtype: str) -> NDArray[np.float32]:
    """The inverse of pack_activations, float32 [n]. Raises ValueError if data is cut off or dtype unknown."""
    if dtype == "bfloat16":
        return (np.frombuffer(data, "<u2").astype("<u4") << 16).view("<f4")
    if dtype not in WIDTHS:
        raise ValueError(f"there is no dtype {dtype!r}")
    return np.frombuffer(data, {"float32": "<f4", "float16": "<f2"}[dtype]).astype(np.float32)


def pack_token_ids(token_ids: NDArray[Any]) -> bytes:
    """3 bytes for each token id, little-endian. Raises ValueError for an id of 2^24 or more."""
    ids = np.ascontiguousarray(token_ids, dtype="<u4")
    if ids.size and int(ids.max()) >= 1 << 24:
        raise ValueError(f"token id {int(ids.max())} does not fit in 3 bytes")
    return ids.view(np.uint8).reshape(-1, 4)[:, :3].tobytes()


def pack_each(arrays: Sequence[NDArray[Any]]) -> Iterator[bytes]:
    """pack_token_ids of each array, at the cost of one call. There must be at least one array."""
    data, begin = pack_token_ids(np.concatenate(arrays)), 0
    for array in arrays:
        yield data[begin : begin + 3 * len(array)]
        begin += 3 * len(array)


def unpack_token_ids(data: bytes) -> NDArray[np.uint32]:
    """The inverse of pack_token_ids, [n]."""
    wide = np.zeros((len(data) // 3, 4), np.uint8)
    wide[:, :3] = np.frombuffer(data, np.uint8).reshape(-1, 3)
    return wide.view("<u4")[:, 0].astype(np.uint32)
