"""Which exemplars explain, which select, which report; and which part of a record is scored (pure)."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence

from neuroexplain.evidence import Exemplar, Split
from neuroexplain.stable_hash import stable_hash
from neuroexplain.units import CROP_LENGTH, KINDS, SEGMENT_LENGTH, Kind, UnitId

SHARED_TOKENS = 16  # consecutive token ids that two records on different sides may not share
LEAST_KEPT = 5  # records of a kind that the document rule leaves in a split

_BY_RANK: tuple[Split, ...] = ("explain", "explain", "select", "report")


def split_by_rank(rank: int) -> Split:
    """The split of a record that shares nothing with others: by rank modulo 4 explain, explain, select, report."""
    return _BY_RANK[rank % 4]


def assign_splits(exemplars: Sequence[Exemplar]) -> Mapping[tuple[Kind, int], Split | None]:
    """Each exemplar's split by (kind, rank); None for a record that would leak.

    By rank modulo 4: explain, explain, select, report. A record that shares a segment or 16 consecutive token ids with an
    `explain` record of any kind has none; likewise a `report` record with a `select` record. Then, per kind, from the last
    rank up, a `report` or `select` record whose document holds an `explain` record is dropped while more than 5 remain.
    """
    splits: dict[tuple[Kind, int], Split | None] = {
        (x.kind, x.rank): split_by_rank(x.rank) for x in exemplars
    }

    def members(split: Split) -> list[Exemplar]:
        return [x for x in exemplars if splits[x.kind, x.rank] == split]

    for before, afters in (("explain", ("select", "report")), ("select", ("report",))):
        kept = members(before)  # type: ignore[arg-type]
        runs = {run for x in kept for run in _token_runs(x)}
        for after in afters:
            for x in members(after):  # type: ignore[arg-type]
                if any(x.shares_segment(y) for y in kept) or not runs.isdisjoint(_token_runs(x)):
                    splits[x.kind, x.rank] = None
    documents = {x.document for x in members("explain")} - {None}
    for split in ("report", "select"):
        for kind in KINDS:
            left = [x for x in members(split) if x.kind == kind]
            remain = len(left)
            for x in sorted(left, key=lambda x: -x.rank):
                if remain > LEAST_KEPT and x.document in documents:
                    splits[x.kind, x.rank] = None
                    remain -= 1
    return splits


def halve_select(
    exemplars: Sequence[Exemplar], splits: Mapping[tuple[Kind, int], Split | None], kinds: Collection[Kind]
) -> tuple[set[tuple[Kind, int]], set[tuple[Kind, int]]]:
    """(shown, held) of the `select` records of these kinds: ranks 2 mod 8, which a revision is shown, and ranks 6 mod 8.

    A held record that shares a segment or 16 consecutive token ids with a shown one is in neither.
    """
    chosen = [x for x in exemplars if splits[x.kind, x.rank] == "select" and x.kind in kinds]
    shown = [x for x in chosen if x.rank % 8 == 2]
    runs = {run for x in shown for run in _token_runs(x)}
    held = {
        (x.kind, x.rank)
        for x in chosen
        if x.rank % 8 == 6 and not any(x.shares_segment(y) for y in shown) and runs.isdisjoint(_token_runs(x))
    }
    return {(x.kind, x.rank) for x in shown}, held


def find_leaks(exemplars: Sequence[Exemplar], scored: Collection[tuple[Kind, int]]) -> list[str]:
    """What a scored record shares with one that an explainer or a choice among candidates may see; empty if nothing leaks.

    Written apart from assign_splits, from the definition, so that the one can find the other's faults.
    """
    splits = assign_splits(exemplars)
    before = {"select": ("explain",), "report": ("explain", "select")}
    windows = {(x.kind, x.rank): set(_windows(x.token_ids.tolist())) for x in exemplars}
    leaks = []
    for x in exemplars:
        if (x.kind, x.rank) not in scored:
            continue
        mine = splits[x.kind, x.rank]
        if mine not in before:
            leaks.append(f"{x.kind} {x.rank} was scored, though its split is {mine}")
            continue
        for seen in exemplars:
            if splits[seen.kind, seen.rank] not in before[mine]:
                continue
            if abs(x.segment - seen.segment) * x.stride < SEGMENT_LENGTH:
                leaks.append(
                    f"{x.kind} {x.rank} and {seen.kind} {seen.rank}, which was seen, are of segment {x.segment}"
                )
            elif windows[x.kind, x.rank] & windows[seen.kind, seen.rank]:
                leaks.append(
                    f"{x.kind} {x.rank} shares {SHARED_TOKENS} tokens with {seen.kind} {seen.rank}, which was seen"
                )
    return leaks


def crop_first(seed: int, neuron: UnitId, kind: Kind, rank: int) -> int:
    """The first of the 32 tokens of a record that are simulated and scored, 1..32: the peak may lie anywhere in them."""
    return 1 + stable_hash(seed, neuron.layer, neuron.index, kind, rank) % CROP_LENGTH


def _windows(token_ids: list[int]) -> Iterator[tuple[int, ...]]:
    return (tuple(token_ids[i : i + SHARED_TOKENS]) for i in range(len(token_ids) - SHARED_TOKENS + 1))


def _token_runs(exemplar: Exemplar) -> set[bytes]:
    packed, width = exemplar.token_ids.astype("<u4").tobytes(), 4 * SHARED_TOKENS
    return {packed[at : at + width] for at in range(0, len(packed) - width + 1, 4)}
