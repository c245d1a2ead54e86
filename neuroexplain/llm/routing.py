"""Which of several equal servers a request goes to. replicas.py keeps the counts.

Requests that begin with the same tokens go to the same server, because its prefix cache holds them. The
server is found by rendezvous hashing: each server gets a hash of the prefix and its own URL, and the highest
wins. So no table is kept, and a server that joins or leaves moves only its own share of the prefixes. A
server that is clearly busier than the least busy one is passed over, or a slow one would hold up all others.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence

import numpy as np

from neuroexplain.llm.engine import Message

CACHE_BLOCK = 16  # tokens in a block of vLLM's prefix cache, as it comes: less than a block is not kept
# A server is clearly busier if it has more requests than the least busy one by this factor and this number.
# With 64 requests over two servers chance alone makes differences of 8.
BUSIER_FACTOR, BUSIER_NUMBER = 1.25, 2
CHATS_KEPT = 10_000  # a chat goes on a few requests later, if it does


def prefix_key(token_ids: Sequence[int]) -> bytes:
    """What requests have in common that begin with these tokens: their ids, cut to whole cache blocks.

    Fewer tokens than a block are all taken.
    """
    n = len(token_ids) // CACHE_BLOCK * CACHE_BLOCK or len(token_ids)
    return np.asarray(token_ids[:n], np.uint32).tobytes()


def choose_server(prefix: bytes, outstanding: Mapping[str, int]) -> str:
    """The URL of the server to send a request to. outstanding: requests that each has, by URL; not empty.

    Without a prefix it is the least busy one. Of equally busy ones it is that with the highest hash.
    """
    hashes = {url: _rendezvous_hash(prefix, url) for url in outstanding}
    least = min(outstanding.values())
    if prefix:
        preferred = max(hashes, key=hashes.__getitem__)
        if outstanding[preferred] <= BUSIER_FACTOR * least + BUSIER_NUMBER:
            return preferred
    return min(outstanding, key=lambda url: (outstanding[url], -hashes[url]))


class Conversations:
    """Which conversation a chat belongs to: one that goes on from an earlier chat belongs to that one's."""

    def __init__(self) -> None:
        self._keys: OrderedDict[bytes, bytes] = OrderedDict()  # of chats, by the hash of their turns
        self._lock = threading.Lock()

    def key(self, messages: Sequence[Message]) -> bytes:
        """The conversation's key: the hash of its first chat."""
        running, hashes = hashlib.blake2b(digest_size=16), []
        for message in messages:
            turn = f"{message.role}\0{message.content}\0".encode("utf-8", "surrogatepass")
            running.update(turn)
            hashes.append(running.digest())
        with self._lock:
            earlier = next((self._keys[h] for h in reversed(hashes) if h in self._keys), hashes[-1])
            self._keys[hashes[-1]] = earlier
            if len(self._keys) > CHATS_KEPT:
                self._keys.popitem(last=False)
        return earlier


def _rendezvous_hash(prefix: bytes, url: str) -> int:
    digest = hashlib.blake2b(prefix, digest_size=8, key=hashlib.blake2b(url.encode()).digest()).digest()
    return int.from_bytes(digest, "big")
