"""Which segments a collection visits, in which order, and whether it can begin before all are tokenized."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from neuroexplain.config import CollectConfig
from neuroexplain.corpus.files import find_files
from neuroexplain.runtime.tuning import LARGE_CORPUS


def visiting_order(n_segments: int, sampling: str, seed: int, n: int | None) -> NDArray[np.int64]:
    """The numbers of the visited segments, in order.

    With sampling "random" the first n (None: all) of a seeded permutation, with "sequential" the first n.
    """
    order = (
        np.random.default_rng(seed).permutation(n_segments) if sampling == "random" else np.arange(n_segments)
    )
    return order[:n].astype(np.int64)


def takes_first_segments(config: CollectConfig) -> bool:
    """Whether `--segments N` means the first N of the token stream.

    A streamed data set has no permutation of segments: its documents are shuffled instead.
    """
    return config.sampling == "sequential" or find_files(config.dataset, config.split) is None


def is_in_corpus_order(config: CollectConfig) -> bool:
    """Whether segments are visited in the corpus's order. If all are read, the order changes no result."""
    return config.segments is None or takes_first_segments(config)


def is_tokenized_while_read(config: CollectConfig) -> bool:
    """Whether a second process tokenizes while segments are read.

    That needs the corpus's own order: a permutation of all segments needs their number. And the corpus must
    be large enough for the start of a process to pay.
    """
    files = find_files(config.dataset, config.split)
    return takes_first_segments(config) or (
        is_in_corpus_order(config) and sum(file.stat().st_size for file in files or ()) >= LARGE_CORPUS
    )
