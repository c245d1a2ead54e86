"""Detection (Paulo et al. 2024): does the unit fire anywhere in this window, by its explanation?

The value of a window is the probability of yes. It says nothing of where in the window the unit fires, so an
explanation of the window's topic does as well as that of the word: fuzzing.py asks for the place.
"""

from __future__ import annotations

from neuroexplain.evidence import Tokens
from neuroexplain.scorers._judge import Judge, window_text
from neuroexplain.scoring.side_evidence import Trial


class Detection(Judge):
    """A question about each window of 32 tokens; context is seen, the place is not."""

    name = "detection"
    prompt_name = "judge/detection"

    def text_of(self, trial: Trial, tokens: Tokens) -> str:
        return window_text(trial, tokens)


SCORER = Detection()
