"""Which records explain, which select and which report; and which part of a record is scored (pure).

An explanation must not be scored on text that its explainer saw, nor a choice among candidates be judged on
text that the choice was made by. Runs split their text by passage (sampling.py), so that no unit's records
of different splits have text in common but for repeated text: what shares SHARED_TOKENS token ids in a row
with an `explain` record is not scored (find_shared).

Runs of the first version split by rank instead (assign_splits). There a record that shares text with one of
an earlier split has no split. To share text means to share a segment, or SHARED_TOKENS equal token ids in a
row. A shared document counts too, as long as LEAST_KEPT records of a kind remain in the split: a unit that
fires in one document alone must have records to be scored by.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Literal

from neuroexplain.evidence import Exemplar, RecordKey, Split
from neuroexplain.stable_hash import stable_hash
from neuroexplain.units import CROP_LENGTH, KINDS, SEGMENT_LENGTH, Kind, UnitId

SHARED_TOKENS = 16  # equal token ids in a row that make two records the same text
LEAST_KEPT = 5  # records of a kind that a split keeps though their document explains too


_BY_RANK: tuple[Split, ...] = ("explain", "explain", "select", "report")
_EARLIER: Mapping[Split | None, tuple[Split, ...]] = {"select": ("explain",), "report": ("explain", "select")}


def split_by_rank(rank: int) -> Split:
    """The split of a record that shares no text: by rank modulo 4 explain, explain, select, report."""
    return _BY_RANK[rank % 4]


def assign_splits(exemplars: Sequence[Exemplar]) -> Mapping[RecordKey, Split | None]:
    """Each record's split, or None for a record that would leak.

    The rank gives the split: modulo 4 explain, explain, select, report. A record of `select` or `report` that
    shares a segment or 16 token ids in a row with an `explain` record of any kind gets None; likewise a
    `report` record with a `select` record. Then, in `report` and in `select`, kind by kind and from the last
    rank up, a record whose document holds an `explain` record gets None while more than 5 remain.
    """
    splits: dict[RecordKey, Split | None] = {x.key: split_by_rank(x.rank) for x in exemplars}
    _drop_shared(exemplars, splits, "explain", ("select", "report"))
    _drop_shared(exemplars, splits, "select", ("report",))
    documents = {x.document for x in _members(exemplars, splits, "explain")} - {None}
    for split in ("report", "select"):
        members = _members(exemplars, splits, split)
        for kind in KINDS:
            of_kind = sorted((x for x in members if x.kind == kind), key=lambda x: -x.rank)
            n_left = len(of_kind)
            for x in of_kind:
                if n_left > LEAST_KEPT and x.document in documents:
                    splits[x.key] = None
                    n_left -= 1
    return splits


def _members(
    exemplars: Sequence[Exemplar], splits: Mapping[RecordKey, Split | None], split: str
) -> list[Exemplar]:
    return [x for x in exemplars if splits[x.key] == split]


def _drop_shared(
    exemplars: Sequence[Exemplar],
    splits: dict[RecordKey, Split | None],
    earlier: Split,
    later: tuple[Split, ...],
) -> None:
    """Take records out of the later splits that share text with one of the earlier split."""
    kept = _members(exemplars, splits, earlier)
    kept_runs = {run for x in kept for run in _token_runs(x)}
    for x in exemplars:
        if splits[x.key] not in later:
            continue
        if any(x.shares_segment(y) for y in kept) or not kept_runs.isdisjoint(_token_runs(x)):
            splits[x.key] = None


def halve_select(
    exemplars: Sequence[Exemplar], splits: Mapping[RecordKey, Split | None], kinds: Collection[Kind]
) -> tuple[set[RecordKey], set[RecordKey]]:
    """The `select` records of these kinds in halves: ranks 2 mod 8 to revise by, ranks 6 mod 8 to judge by.

    A record of the second half that shares a segment or 16 token ids in a row with one of the first is in
    neither.
    """
    select = [x for x in exemplars if splits[x.key] == "select" and x.kind in kinds]
    first = [x for x in select if x.rank % 8 == 2]
    first_runs = {run for x in first for run in _token_runs(x)}
    second = [
        x
        for x in select
        if x.rank % 8 == 6
        and not any(x.shares_segment(y) for y in first)
        and first_runs.isdisjoint(_token_runs(x))
    ]
    return {x.key for x in first}, {x.key for x in second}


def find_shared(
    exemplars: Sequence[Exemplar], splits: Mapping[RecordKey, Split | None]
) -> frozenset[RecordKey]:
    """The `select` and `report` records that share 16 token ids in a row with an `explain` record."""
    explain_runs = {run for x in _members(exemplars, splits, "explain") for run in _token_runs(x)}
    held_out = (x for x in exemplars if splits[x.key] in ("select", "report"))
    return frozenset(x.key for x in held_out if not explain_runs.isdisjoint(_token_runs(x)))


def find_leaks(
    exemplars: Sequence[Exemplar],
    scored: Collection[RecordKey],
    split_rule: Literal["ranks", "passages"] = "ranks",
) -> list[str]:
    """What scored records share with records that explainers, or choices among candidates, may see.

    Written from the definition and apart from assign_splits and find_shared, so that each can find the
    other's faults. In runs that split by passage only `explain` records are seen.
    """
    by_passage = split_rule == "passages"
    splits = {x.key: x.split for x in exemplars} if by_passage else assign_splits(exemplars)
    seen: Mapping[Split | None, tuple[Split, ...]] = _EARLIER
    if by_passage:
        seen = {"select": ("explain",), "report": ("explain",)}
    windows = {x.key: set(_windows(x.token_ids.tolist())) for x in exemplars}
    leaks = []
    for x in exemplars:
        if x.key not in scored:
            continue
        split = splits[x.key]
        if split not in seen:
            leaks.append(f"{x.kind} {x.rank} was scored, though its split is {split}")
            continue
        for y in exemplars:
            if splits[y.key] not in seen[split]:
                continue
            if abs(x.segment - y.segment) * x.stride < SEGMENT_LENGTH:
                leaks.append(
                    f"{x.kind} {x.rank} and {y.kind} {y.rank}, which was seen, are of segment {x.segment}"
                )
            elif windows[x.key] & windows[y.key]:
                leaks.append(
                    f"{x.kind} {x.rank} shares {SHARED_TOKENS} tokens with {y.kind} {y.rank}, which was seen"
                )
    return leaks


def crop_first(seed: int, unit: UnitId, kind: Kind, number: int) -> int:
    """The first of a record's 32 tokens that are predicted and scored, 1..32.

    It is drawn by a hash of the record's rank, or another number of it. The peak, always at the same token of
    a record, may so be anywhere in the crop, and a prediction gains nothing by position.
    """
    return 1 + stable_hash(seed, unit.layer, unit.index, kind, number) % CROP_LENGTH


def _windows(token_ids: list[int]) -> Iterator[tuple[int, ...]]:
    return (tuple(token_ids[i : i + SHARED_TOKENS]) for i in range(len(token_ids) - SHARED_TOKENS + 1))


def _token_runs(exemplar: Exemplar) -> set[bytes]:
    """All runs of SHARED_TOKENS token ids, as bytes."""
    packed, width = exemplar.token_ids.astype("<u4").tobytes(), 4 * SHARED_TOKENS
    return {packed[first : first + width] for first in range(0, len(packed) - width + 1, 4)}
