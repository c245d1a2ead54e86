"""Activations as bytes in the run's dtype, without loss; token ids in 3 bytes (pure)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

WIDTHS = {"float32": 4, "float16": 2, "bfloat16": 2}  # bytes of one activation


def pack_activations(values: NDArray[np.float32], dtype: str) -> bytes:
    """Little-endian bytes of `values` in `dtype`. Raises ValueError where a value would be rounded: nothing is lost unseen."""
    values = np.ascontiguousarray(values, dtype="<f4")
    if dtype == "float32":
        return values.tobytes()
    if dtype == "bfloat16":
        bits = values.view("<u4")
        if np.any(bits & 0xFFFF):
            raise ValueError("an activation is not a bfloat16 value")
        return (bits >> 16).astype("<u2").tobytes()
    halves = values.astype("<f2")
    if not np.array_equal(halves.astype("<f4"), values):
        raise ValueError("an activation is not a float16 value")
    return halves.tobytes()


def unpack_activations(data: bytes, dtype: str) -> NDArray[np.float32]:
    """What pack_activations packed, as float32 [n]."""
    if dtype == "bfloat16":
        return (np.frombuffer(data, "<u2").astype("<u4") << 16).view("<f4")
    return np.frombuffer(data, {"float32": "<f4", "float16": "<f2"}[dtype]).astype(np.float32)


def pack_token_ids(token_ids: NDArray[Any]) -> bytes:
    """3 bytes per token id, little-endian. Raises ValueError for ids of 2^24 or more."""
    ids = np.ascontiguousarray(token_ids, dtype="<u4")
    if ids.size and int(ids.max()) >= 1 << 24:
        raise ValueError(f"token id {int(ids.max())} does not fit in 3 bytes")
    return ids.view(np.uint8).reshape(-1, 4)[:, :3].tobytes()


def unpack_token_ids(data: bytes) -> NDArray[np.uint32]:
    """What pack_token_ids packed, [n]."""
    wide = np.zeros((len(data) // 3, 4), np.uint8)
    wide[:, :3] = np.frombuffer(data, np.uint8).reshape(-1, 3)
    return wide.view("<u4")[:, 0].astype(np.uint32)
