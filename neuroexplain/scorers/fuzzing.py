"""Fuzzing (Paulo et al. 2024): are the marked tokens those that the unit fires at, by its explanation?

In windows where the unit fires, its tokens are marked; in others, as many at random (scoring/windows.py). The
value of a window is the probability of yes. It asks for the place, as detection does not; but a judge that
only sees whether the window has what is looked for gets by, since no window where the unit fires is marked
wrongly, as it is in Paulo et al.
"""

from __future__ import annotations

from neuroexplain.evidence import Tokens
from neuroexplain.scorers._judge import Judge, window_text
from neuroexplain.scoring.side_evidence import SideEvidence, Trial
from neuroexplain.scoring.windows import MarkedWindow, marked_hard_negatives, marked_windows


class Fuzzing(Judge):
    """A question about the marked tokens of each window of 32; context and place are seen."""

    name = "fuzzing"
    prompt_name = "judge/fuzzing"

    def trials(self, evidence: SideEvidence) -> list[Trial]:
        return [*marked_windows(evidence), *marked_hard_negatives(evidence)]

    def text_of(self, trial: Trial, tokens: Tokens) -> str:
        assert isinstance(trial, MarkedWindow)
        return window_text(trial, tokens, trial.marked)


SCORER = Fuzzing()
