"""Splits, sizes and draws as the definitions have them, in plain loops: written apart from the code.

A segment's split here is a name, or None. Activations are those of one unit.
"""

import numpy as np

from neuroexplain.stable_hash import stable_hash

SPLITS = ("explain", "select", "report")
RANDOM_SHARES = {"explain": 1, "select": 1, "report": 2}
SAMPLED_SHARES = {"explain": 2, "select": 1, "report": 2}


def split_of(passage, seed):
    eighth = stable_hash(seed, "passage", passage) % 8
    return {0: "explain", 1: "explain", 2: "explain", 3: "select", 4: "select"}.get(eighth, "report")


def splits_of_documents(lengths, seed):
    """The split of every segment of 128 tokens, of documents of these lengths that follow each other."""
    passages, place = [], 0
    for length in lengths:
        passages += [(place + 8192 * (offset // 8192)) // 1024 for offset in range(length)]
        place += length
    by_passage = {passage: split_of(passage, seed) for passage in set(passages)}
    splits = [by_passage[passage] for passage in passages]
    return [only(splits[first : first + 128]) for first in range(0, len(splits) - 127, 128)]


def only(values):
    return values[0] if len(set(values)) == 1 else None


def counts(n, shares):
    """How many of n records each split gets, by these shares; the remainder goes to `report`."""
    one = n // sum(shares.values())
    parts = {split: one * share for split, share in shares.items()}
    parts["report"] += n - sum(parts.values())
    return parts


def drawn_at_random(segments, splits, n, seed):
    """The segments of the random records in rank order: split by split, the smallest hash first."""
    records = []
    for split, n_of_split in counts(n, RANDOM_SHARES).items():
        own = [segment for segment in segments if splits[segment] == split]
        records += sorted(own, key=lambda segment: stable_hash(seed, "random", segment))[:n_of_split]
    return records


def size(window, counting, segment, sign, seed):
    """The float32 sum of relu(sign * a)^2 over the scored half of tokens 64..127, by halvings.

    window: activations of these 64 tokens. counting: whether each counts.
    """
    first = 32 * (stable_hash(seed, "half", segment) % 2)
    half = zip(window[first : first + 32], counting[first : first + 32], strict=True)
    kept = [np.float32(max(sign * float(value), 0) if counts else 0) for value, counts in half]
    sums = [value * value for value in kept]
    while len(sums) > 1:
        n = len(sums) // 2
        sums = [sums[i] + sums[n + i] for i in range(n)]
    return sums[0]


def draw(sizes, splits, split, n, seed):
    """([(segment, size)] of the n largest size / u of a split, the threshold). sizes: by segment."""
    ratios = []
    for segment, own in sizes.items():
        if splits[segment] == split and own > 0:
            u = (stable_hash(seed, "sampled", segment) + 1) / 2**64
            ratios.append((-(float(own) / u), segment, float(own)))
    ratios.sort()
    threshold = -ratios[n][0] if len(ratios) > n else 0.0
    return [(segment, own) for _, segment, own in ratios[:n]], threshold
