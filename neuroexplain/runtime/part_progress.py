"""The progress of several parts as one (pure)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from neuroexplain.runtime.progress import Progress

Stages = Mapping[str, Progress]  # a part's last progress in each of its stages


def combine(
    parts: Collection[Stages],
    order: Sequence[str],
    counting: Collection[str],
    before: Progress | None = None,
    note: str | None = None,
) -> Progress:
    """The progress of all parts, in the stage of the slowest part that counts already.

    order: the stages in their order. counting: those in which a part counts its share of the whole. While no
    part counts, it is `before`, if there is such. The total is known when every part has one.
    """
    current = [max(stages, key=order.index) for stages in parts if stages]
    active = [stage for stage in current if stage in counting]
    if before is not None and not active:
        return replace(before, note=note)
    stage = min(active or current or order[:1], key=order.index)
    if active and len(active) < len(parts):
        # The parts that do not count yet will begin as the others began.
        stage = min((s for stages in parts for s in stages if s in counting), key=order.index)
    in_stage = [stages[stage] for stages in parts if stage in stages]
    totals = [progress.total for progress in in_stage if progress.total is not None]
    is_known = len(active) == len(parts) and len(totals) == len(in_stage)
    return Progress(
        stage,
        sum(progress.done for progress in in_stage),
        sum(totals) if is_known else None,
        in_stage[0].unit if in_stage else "",
        failures=sum((Counter(progress.failures) for progress in in_stage), Counter()),
        note=note,
        tokens=sum(progress.tokens for progress in in_stage),
    )
