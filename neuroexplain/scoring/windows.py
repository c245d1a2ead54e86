"""Windows of 32 tokens that a judge is asked about: in which of them a unit fires, and where (pure).

A window is the scored half of a random or sampled record. A side fires at a token above 0.3 of its strongest
peak, as for the AUPRC; a window with such a token is positive. The activations of each window are known, so
no text is taken to be silent because nobody looked.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from neuroexplain.evidence import Exemplar
from neuroexplain.scoring.population import POSITIVE_SHARE
from neuroexplain.scoring.side_evidence import SideEvidence, Trial
from neuroexplain.units import CROP_LENGTH


def windows_of(evidence: SideEvidence) -> list[Trial]:
    """The held-out windows of a side, those of select first in the order of kinds and ranks.

    None without a peak above 0: nothing says then where the side fires.
    """
    if not (evidence.peak or 0.0) > 0:
        return []
    return [trial for trial in evidence.crops() if trial.kind in ("random", "sampled")]


def firing_tokens(evidence: SideEvidence, record: Exemplar) -> NDArray[np.bool_]:
    """At which tokens of a random or sampled record's window the side fires, [32].

    There must be a peak. A token that is not scored, a barred special one, does not count.
    """
    assert evidence.peak is not None
    first = evidence.first_of(record)
    window = slice(first, first + CROP_LENGTH)
    fires = evidence.truth(record)[window] > POSITIVE_SHARE * evidence.peak
    return fires & evidence.counts(record)[window]
