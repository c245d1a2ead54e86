"""Look for records that contradict how they should have been drawn (pure).

Written from the rules and apart from the code that draws (sampling.py and collecting/), so that each can find
the other's faults. A layer's arrays are checked together: splits by passage, random records, and the sizes,
order and thresholds of sampled ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from neuroexplain.arrays import CollectedLayer, ExemplarArrays, SampleArrays
from neuroexplain.evidence import Segment, Split
from neuroexplain.runs import Run
from neuroexplain.stable_hash import stable_hash
from neuroexplain.units import Side

Segments = Mapping[int, Segment]
MOST_LINES = 3  # of one fault: more of them say no more
EIGHTHS: tuple[Split, ...] = (
    "explain",
    "explain",
    "explain",
    "select",
    "select",
    "report",
    "report",
    "report",
)
OF_RANDOM: Mapping[Split, Fraction] = {"explain": Fraction(1, 4), "select": Fraction(1, 4)}
OF_SAMPLED: Mapping[Split, Fraction] = {"explain": Fraction(2, 5), "select": Fraction(1, 5)}


def find_record_faults(run: Run, layer: CollectedLayer, segments: Segments) -> Iterator[str]:
    """A line for each fault of a layer. segments: those of its records, by number."""
    for kind, arrays in layer.exemplars.items():
        yield from _find_wrong_splits(run, layer.layer, kind, arrays, segments)
    yield from _find_torn_documents(run, layer)
    if "random" in layer.exemplars:
        yield from _find_random_faults(run, layer.layer, layer.exemplars["random"], segments)
    for (side, split), sample in layer.samples.items():
        name = f"sampled, {side}, {split}"
        yield from _find_wrong_splits(run, layer.layer, name, sample.records, segments)
        yield from _find_sample_faults(run, layer.layer, side, split, sample, segments)
        if "random" in layer.exemplars:
            random = layer.exemplars["random"]
            yield from _find_missed(run, layer.layer, side, split, sample, random, segments)


def find_segment_faults(run: Run, splits: Mapping[int, Split | None], random: set[int]) -> Iterator[str]:
    """Faults of the stored segments together. random: the segments of the random records."""
    n_random = int(run.n_random)
    for split in ("explain", "select", "report"):
        members = [number for number, own in splits.items() if own == split]
        drawn = sorted(number for number in random if splits.get(number) == split)
        n, n_visited = _share(n_random, OF_RANDOM, split), run.split_segments.get(split, 0)
        if len(members) > n_visited:
            yield f"{len(members)} segments are {split}, more than the {n_visited} that were visited"
        if len(drawn) != min(n, n_visited):
            yield f"{split} has {len(drawn)} random records of {n_visited} segments, not {min(n, n_visited)}"
        last = max((_hash(run.seed, "random", number) for number in drawn), default=-1)
        missed = [m for m in members if m not in random and _hash(run.seed, "random", m) < last]
        for number in missed[:MOST_LINES]:
            yield f"segment {number} ({split}) has a smaller hash than a random record, and is none"


def _find_wrong_splits(
    run: Run, layer: int, name: str, arrays: ExemplarArrays, segments: Segments
) -> Iterator[str]:
    """Records whose tokens are of passages with another split than their segment's.

    What is certain of a record's tokens: from its document's first one to its peak they are of that document.
    """
    used = arrays.counts_mask()
    units, ranks = used.nonzero()
    peaks = np.full(len(units), 32)
    if name not in ("top", "bottom"):
        of_records = arrays.activations[used]
        values = arrays.peaks[used]
        peaks = (of_records == values[:, None]).argmax(axis=1)
    stride = run.segment_stride
    begins = arrays.segments[used].astype(np.int64) * stride + arrays.starts[used]
    offsets = arrays.token_offsets[used].astype(np.int64)
    has_document = arrays.documents[used] >= 0
    rows = np.stack([arrays.segments[used], begins, offsets, peaks, has_document], axis=1)
    distinct, first = np.unique(rows, axis=0, return_index=True)
    for (segment, begin, offset, peak, known), place in zip(distinct.tolist(), first.tolist(), strict=True):
        split = segments[segment].split
        ends = (max(0, -offset), peak)
        expected = {_split_at(run.seed, begin, offset, token, bool(known)) for token in ends}
        if split is None or expected == {split}:
            continue
        where = f"{layer}:{units[place]}, {name} record {ranks[place]}"
        yield f"{where}: its segment {segment} is {split}, and its passage {' and '.join(sorted(expected))}"


def _find_torn_documents(run: Run, layer: CollectedLayer) -> Iterator[str]:
    """Records by whose offsets their document begins elsewhere in the stream than by most others."""
    drawn = {str(kind): arrays for kind, arrays in layer.exemplars.items()}
    drawn |= {f"sampled, {side}, {split}": s.records for (side, split), s in layer.samples.items()}
    rows, names = [np.zeros((0, 5), np.int64)], list(drawn)
    for number, arrays in enumerate(drawn.values()):
        used = arrays.counts_mask() & (arrays.documents >= 0)
        units, ranks = used.nonzero()
        begins = arrays.segments[used].astype(np.int64) * run.segment_stride + arrays.starts[used]
        begins -= arrays.token_offsets[used]
        columns = [arrays.documents[used], begins, np.full(len(units), number), units, ranks]
        rows.append(np.stack(columns, axis=1).astype(np.int64))
    table = np.concatenate(rows)
    distinct, first, counts = np.unique(table[:, :2], axis=0, return_index=True, return_counts=True)
    is_torn = np.isin(distinct[:, 0], distinct[1:][np.diff(distinct[:, 0]) == 0][:, 0])
    for document in np.unique(distinct[is_torn, 0])[:MOST_LINES].tolist():
        places = np.flatnonzero(distinct[:, 0] == document)
        usual = places[counts[places].argmax()]
        for place in places[places != usual][:MOST_LINES].tolist():
            _, begin, number, unit, rank = table[first[place]].tolist()
            where, other = f"{layer.layer}:{unit}, {names[number]} record {rank}", distinct[usual, 1]
            yield f"{where}: document {document} begins at {begin} by it, and at {other} by others"


def _split_at(seed: int, begin: int, offset: int, token: int, known: bool) -> Split:
    """The split of a record's token. begin: the record's place in the stream, offset: in its document."""
    if not known:
        return EIGHTHS[_hash(seed, "passage", (begin + token) // 1024) % len(EIGHTHS)]
    document_begin, place = begin - offset, offset + token
    piece = document_begin + place - place % 8192
    return EIGHTHS[_hash(seed, "passage", piece // 1024) % len(EIGHTHS)]


def _find_random_faults(run: Run, layer: int, random: ExemplarArrays, segments: Segments) -> Iterator[str]:
    """Random records that differ between units, have no split, or are out of order."""
    for unit in np.flatnonzero((random.segments != random.segments[:1]).any(axis=1))[:MOST_LINES].tolist():
        yield f"{layer}:{unit}: its random records are of other segments than those of {layer}:0"
    numbers = _random_segments(random)
    splits = [segments[number].split for number in numbers]
    if None in splits:
        yield f"layer {layer}: random record {splits.index(None)} is of a segment without a split"
        return
    order = [
        (EIGHTHS.index(split), _hash(run.seed, "random", number))
        for split, number in zip(splits, numbers, strict=True)
        if split is not None
    ]
    if order != sorted(order):
        yield f"layer {layer}: random records are not in the order of splits and hashes"


def _random_segments(random: ExemplarArrays) -> list[int]:
    """The segments of the first unit's random records, in rank order."""
    numbers: list[int] = random.segments[0, : random.counts[0]].tolist()
    return numbers


def _find_sample_faults(
    run: Run, layer: int, side: Side, split: Split, sample: SampleArrays, segments: Segments
) -> Iterator[str]:
    """Sampled records with a wrong split, size, place or threshold."""
    name = f"sampled records of {split}, {side}"
    used, records = sample.records.counts_mask(), sample.records
    n = _share(run.n_sampled, OF_SAMPLED, split)
    distinct = np.unique(records.segments[used]).tolist()
    wrong = [number for number in distinct if segments[number].split != split]
    for unit in np.flatnonzero((np.isin(records.segments, wrong) & used).any(axis=1))[:MOST_LINES].tolist():
        yield f"{layer}:{unit}: its {name} are of a segment of another split"
    sizes = _sizes_of(run, side, records, segments)
    for unit, rank in np.argwhere((sizes != sample.sizes) & used)[:MOST_LINES].tolist():
        stored, true_size = sample.sizes[unit, rank], sizes[unit, rank]
        yield f"{layer}:{unit}: size {rank} of its {name} is {stored}, and its activations give {true_size}"
    ratios = np.where(used, sample.sizes / _uniforms(run, records.segments), 0.0)
    is_sorted = (np.diff(ratios, axis=1) <= 0).all(axis=1)
    for unit in np.flatnonzero(~is_sorted)[:MOST_LINES].tolist():
        yield f"{layer}:{unit}: its {name} are not in the order of size / uniform"
    last = np.where(used, ratios, np.inf).min(axis=1, initial=np.inf)
    for unit in np.flatnonzero(last < sample.thresholds)[:MOST_LINES].tolist():
        yield f"{layer}:{unit}: the threshold {sample.thresholds[unit]} of its {name} is above {last[unit]}"
    for unit in np.flatnonzero((records.counts < n) & (sample.thresholds > 0))[:MOST_LINES].tolist():
        yield f"{layer}:{unit}: its {name} are {records.counts[unit]}, not {n}, in spite of a threshold"
    for unit in np.flatnonzero(records.counts > n)[:MOST_LINES].tolist():
        yield f"{layer}:{unit}: its {name} are {records.counts[unit]}, more than {n}"


def _find_missed(
    run: Run,
    layer: int,
    side: Side,
    split: Split,
    sample: SampleArrays,
    random: ExemplarArrays,
    segments: Segments,
) -> Iterator[str]:
    """Random records that should have been sampled: their size / uniform is above the threshold."""
    columns = [
        column for column, number in enumerate(_random_segments(random)) if segments[number].split == split
    ]
    if not columns:
        return
    sizes = _sizes_of(run, side, random, segments)[:, columns]
    numbers = random.segments[:, columns]
    ratios = sizes / _uniforms(run, numbers)
    is_same = numbers[:, :, None] == sample.records.segments[:, None, :]
    is_sampled = (is_same & sample.records.counts_mask()[:, None, :]).any(axis=2)
    for unit, column in np.argwhere(~is_sampled & (ratios > sample.thresholds[:, None]))[
        :MOST_LINES
    ].tolist():
        yield (
            f"{layer}:{unit}: segment {numbers[unit, column]} is random and above the threshold of the "
            f"sampled records of {split}, {side}, and is none of them"
        )


def _sizes_of(run: Run, side: Side, records: ExemplarArrays, segments: Segments) -> NDArray[np.float32]:
    """The sum of squares over the scored half of records of tokens 64..127, [width, k]."""
    width, k = records.segments.shape
    numbers, index = np.unique(records.segments, return_inverse=True)
    firsts = np.array([32 * (_hash(run.seed, "half", n) % 2) for n in numbers.tolist()], np.int64)
    columns = firsts[index.reshape(width, k)][:, :, None] + np.arange(32)
    half = np.take_along_axis(records.activations, columns, axis=2)
    if run.barred_ids:
        counts = np.ones((len(numbers), 64), np.bool_)
        for place, number in enumerate(numbers.tolist()):
            if number in segments:  # unused places name a segment that is not needed
                counts[place] = ~np.isin(segments[number].token_ids[-64:], run.barred_ids)
        half = np.where(np.take_along_axis(counts[index.reshape(width, k)], columns, axis=2), half, 0)
    half = half if side == "positive" else -half
    parts: NDArray[np.float32] = half.clip(min=0)
    parts = parts * parts
    for size in (16, 8, 4, 2, 1):
        parts = parts[:, :, :size] + parts[:, :, size : 2 * size]
    return parts[:, :, 0]


def _uniforms(run: Run, numbers: NDArray[np.uint32]) -> NDArray[np.float64]:
    distinct, index = np.unique(numbers, return_inverse=True)
    return np.array([exact_uniform(run.seed, n) for n in distinct.tolist()])[index.reshape(numbers.shape)]


def exact_uniform(seed: int, segment: int) -> float:
    """A segment's number in (0, 1], by which its size is divided."""
    return float(Fraction(_hash(seed, "sampled", segment) + 1, 1 << 64))


def _share(n: int, shares: Mapping[Split, Fraction], split: Split) -> int:
    """How many of n records a split gets: whole shares, and for `report` what is left."""
    parts = max(share.denominator for share in shares.values())
    counts = {name: int(n // parts * parts * share) for name, share in shares.items()}
    return counts[split] if split in counts else n - sum(counts.values())


def _hash(seed: int, name: str, number: int) -> int:
    return stable_hash(seed, name, number)
