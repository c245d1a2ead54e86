"""The visited segments, and scores over all of their `report` tokens."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neuroexplain.evidence import SPLITS
from neuroexplain.scoring.population import POSITIVE_SHARE, weighted_auprc, weighted_correlation

REPORT = SPLITS.index("report")


@dataclass(frozen=True)
class Corpus:
    """The visited segments, in the order of visit."""

    token_ids: NDArray[np.int64]  # [segments, 64], tokens 64..127
    splits: NDArray[np.int8]  # [segments]
    vocabulary: int  # its size

    def report(self, values: NDArray[Any]) -> NDArray[Any]:
        """The values [segments, 64] of all `report` tokens."""
        return values[self.splits == REPORT].reshape(-1)


def true_scores_of(
    truth: NDArray[np.float64], table: NDArray[np.float32], corpus: Corpus, peak: float
) -> tuple[float | None, float]:
    """Correlation and AUPRC over all `report` tokens; nan for an AUPRC without a positive."""
    predicted = table.astype(np.float16).astype(np.float64)[corpus.report(corpus.token_ids)]
    values = corpus.report(truth)
    ones = np.ones(len(values))
    auprc = weighted_auprc(predicted, values > POSITIVE_SHARE * peak, ones)
    return weighted_correlation(predicted, values, ones), math.nan if auprc is None else auprc
