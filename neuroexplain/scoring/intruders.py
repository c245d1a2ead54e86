"""Rounds of five windows, of which a judge is to find the odd one, without any explanation (pure).

Four windows of a round are those where a unit fires, its tokens marked; the odd one is a random record where
it does not, with as many tokens marked at random (windows.py). A unit whose odd windows are found no more
often than by guessing has no meaning that this judge sees, so a single sentence cannot say it either.

All windows are of `report`. Odd ones are random records alone: sampled ones below 0.3 of the peak may be of
the unit's kind. Which four windows stand beside an odd one, and at which place it stands, is drawn by a hash.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from neuroexplain.evidence import INTRUDER, INTRUDER_CHANCE, PredictedRecord, Score, Status
from neuroexplain.scoring.correlation import LEAST_MASS, LEAST_SHARE_WITH_MASS
from neuroexplain.scoring.side_evidence import SideEvidence, Trial
from neuroexplain.scoring.windows import MarkedWindow, firing_tokens, marked_windows
from neuroexplain.stable_hash import stable_hash
from neuroexplain.units import CROP_LENGTH

N_SHOWN = round(1 / INTRUDER_CHANCE)  # windows of a round
N_MEMBERS = N_SHOWN - 1  # of them where the unit fires
MOST_ROUNDS, LEAST_ROUNDS = 16, 5
Z = 1.959964  # of a standard normal distribution's 95%


@dataclass(frozen=True, slots=True)
class IntruderRound(Trial):
    """Five windows; the record is that of the odd one."""

    members: tuple[MarkedWindow, ...] = ()
    odd: MarkedWindow | None = None
    place: int = 0  # of the odd one among the five

    def windows(self) -> list[MarkedWindow]:
        """The five windows in the order in which a judge reads them."""
        assert self.odd is not None
        return [*self.members[: self.place], self.odd, *self.members[self.place :]]

    def odd_first(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Values of the five windows as they are shown, with that of the odd one first."""
        return np.concatenate([[values[self.place]], np.delete(values, self.place)])


def intruder_rounds(evidence: SideEvidence) -> list[IntruderRound]:
    """The rounds of a side, by the order of their odd records; none if there are too few windows."""
    members, odd_ones = _members_and_odd_ones(evidence)
    if len(members) < N_MEMBERS or len(odd_ones) < LEAST_ROUNDS:
        return []
    unit = (evidence.seed, evidence.side, evidence.unit.id.layer, evidence.unit.id.index)
    rounds = []
    for odd in odd_ones[:MOST_ROUNDS]:
        name = (*unit, evidence.by_key[odd.key].segment)
        hashes = {segment: stable_hash("member", *name, segment) for segment in members}
        order = sorted(members, key=hashes.__getitem__)
        place = stable_hash("place", *name) % N_SHOWN
        fields = (odd.kind, odd.rank, odd.split, odd.first, odd.token_ids)
        rounds.append(IntruderRound(*fields, tuple(members[s] for s in order[:N_MEMBERS]), odd, place))
    return rounds


def score_rounds(evidence: SideEvidence, predicted: Sequence[PredictedRecord], no_control: str) -> Score:
    """The share of rounds whose odd window is found, with an interval (Wilson 1927), or why there is none."""
    metric, subset = INTRUDER
    answers = [record.values.astype(np.float64) for record in predicted]
    answered = [values for values in answers if values.sum() >= LEAST_MASS]
    undefined = _why_undefined(evidence, len(answers), len(answered))
    n = len(answered)
    if undefined is not None:
        status, reason = undefined
        return Score(
            *("report", subset, metric, status, None, CROP_LENGTH * N_SHOWN * n, n),
            reason=reason,
            ci_reason=reason,
            control_reason=no_control,
        )
    share = sum(map(found_share, answered)) / n
    low, high = wilson_interval(share, n)
    return Score(
        *("report", subset, metric, Status.OK, share, CROP_LENGTH * N_SHOWN * n, n),
        ci_low=low,
        ci_high=high,
        control_reason=no_control,
    )


def found_share(values: NDArray[np.float64]) -> float:
    """1 if the first value is the greatest, else 0; with equally great ones, its share among them."""
    greatest = values == values.max()
    return float(greatest[0] / greatest.sum())


def wilson_interval(share: float, n: int) -> tuple[float, float]:
    """A 95% interval of a share of n rounds."""
    middle, spread = share + Z**2 / (2 * n), Z * math.sqrt(share * (1 - share) / n + Z**2 / (4 * n**2))
    scale = 1 + Z**2 / n
    return max(0.0, (middle - spread) / scale), min(1.0, (middle + spread) / scale)


def _members_and_odd_ones(evidence: SideEvidence) -> tuple[dict[int, MarkedWindow], list[MarkedWindow]]:
    """The `report` windows where the side fires, by segment, and the random ones where it does not."""
    members: dict[int, MarkedWindow] = {}
    odd_ones = []
    for window in marked_windows(evidence):
        record = evidence.by_key[window.key]
        if window.split != "report":
            continue
        if firing_tokens(evidence, record).any():
            members[record.segment] = window
        elif window.kind == "random":
            odd_ones.append(window)
    return members, odd_ones


def _why_undefined(evidence: SideEvidence, n_asked: int, n_answered: int) -> tuple[Status, str] | None:
    """The status and the reason of an undefined share; None if it is defined."""
    if not n_asked:
        members, odd_ones = _members_and_odd_ones(evidence)
        return Status.NO_RECORDS, (
            f"the unit fires in {len(members)} windows of report ({N_MEMBERS} are needed) and not in "
            f"{len(odd_ones)} random ones ({LEAST_ROUNDS} are needed)"
        )
    if n_answered < max(LEAST_SHARE_WITH_MASS * n_asked, 1):
        reason = f"only {n_answered} of {n_asked} rounds were answered with a number"
        return Status.LOW_DIGIT_MASS, reason
    return None
