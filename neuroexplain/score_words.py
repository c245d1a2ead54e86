"""Scores in words: their names, and what they mean to somebody who sees one for the first time."""

from __future__ import annotations

from neuroexplain.evidence import INTRUDER, INTRUDER_CHANCE, INTRUDER_CLEAR

# The scores that people read first, by metric and subset, in this order: (metric, subset) -> (name, meaning).
SCORE_NAMES = {
    ("correlation", "population"): (
        "population score",
        "How well the predictions from this explanation follow the unit's activations over the whole corpus: "
        "1 is perfect, 0 is no relation. A correlation over random and sampled records, in which each counts "
        "for as many segments as it stands for.",
    ),
    ("correlation_beyond_words", "population"): (
        "beyond its words",
        "The population score without the words that stand in the explanation: what it predicts of words "
        "that it does not name. A mere list of words falls here, a rule does not.",
    ),
    **dict.fromkeys(
        (("correlation", "top_and_random"), ("correlation", "bottom_and_random")),
        (
            "Bills' score",
            "The correlation over the unit's strongest records and random ones, as Bills et al. (2023) define"
            " it, to compare with published figures. It is mostly higher than the correlation over the whole "
            "corpus, and falls little for an explanation that is far too broad.",
        ),
    ),
    ("auprc", "population"): (
        "AUPRC",
        "Whether the unit fires (above 0.3 of its peak) on the tokens that the explanation predicts most, "
        "over the whole corpus. 1 is perfect; guessing earns the share of tokens on which it fires. Of a "
        "judge and of embedding it is the same of windows of 32 tokens. It falls too little for an "
        "explanation that is too broad.",
    ),
    ("auroc", "population"): (
        "AUROC",
        "How often the judge says yes more surely of a window where the unit fires than of one where it does "
        "not (of embedding: how often it is more similar to the explanation), over the whole corpus. 1 is "
        "perfect, 0.5 is guessing. It hardly falls for an explanation that is too broad; that of fuzzing "
        "does not fall at all.",
    ),
    ("auroc", "hard"): (
        "AUROC among look-alikes",
        "The same, but against windows where one would expect the unit to fire, and it does not: they hold "
        "a token at which it often fires in other text, or at which the units nearest to it fire, and a pass "
        "of the model has shown that it is silent there. 0.5 is guessing; much lower than AUROC: the "
        "explanation names the look-alikes too. It is no estimate for the corpus.",
    ),
    ("f1", "population"): (
        "F1",
        "Of windows of which the judge says yes (probability 0.5 or more) and windows where the unit fires, "
        "the share that is both, at the share of such windows in the corpus. Balanced samples, as others "
        "publish them, give higher figures. It falls too little for an explanation that is too broad.",
    ),
    ("balanced_accuracy", "population"): (
        "balanced accuracy",
        "The mean of two shares: windows where the unit fires of which the judge says yes, and others of "
        "which it says no. 0.5 is guessing. It hardly falls for an explanation that is too broad.",
    ),
    INTRUDER: (
        "odd one found",
        "How often a judge finds the odd one of five windows, four of which the unit fires at, without any "
        "explanation. 0.2 is guessing: then the unit has no meaning in one sentence that this judge sees.",
    ),
    ("brier", "population"): (
        "Brier score",
        "The mean squared distance of the judge's probability from 1 where the unit fires and from 0 "
        "elsewhere, over the whole corpus. Less is better: 0 is perfect. It rises too little for an "
        "explanation that is too broad.",
    ),
}
# What a score of 0.4 means, for readers who see one for the first time: name and words. The figures are
# those of the bank of labels in docs/decisions.md.
SCORE_MEANING = (
    (
        "a score",
        "How well what a scorer predicts from the explanation follows the unit's true activations, on text "
        "that no explainer saw: a correlation, from -1 to 1.",
    ),
    ("1", "Every token is predicted right."),
    (
        "0.4",
        "The predictions rise and fall with the activations, and miss much: they account for 16% (0.4 times "
        "0.4) of how these vary. It is good for an ordinary neuron: on 260 random ones of a small model the "
        "best of 365 labels earned 0.17 in the mean (scored by lexical).",
    ),
    (
        "0",
        "No better than always the same guess. Another unit's explanation mostly earns about this: in the "
        "mean 0.00 on those neurons.",
    ),
    ("below 0", "The predictions rise where the activations fall."),
    (
        "interval",
        "The score is an estimate from some records. The score of the whole corpus lies in its 95% interval "
        "in 95 of 100 cases. If it reaches from 0.1 to 0.7, you know little.",
    ),
    (
        "control",
        "Another unit's explanation, scored on the same records. An explanation that does not beat it says "
        "nothing about this unit.",
    ),
)
INTERVAL_MEANING = "The score that other records of the same corpus would give lies in it in 95 of 100 cases."
CONTROL_MEANING = "Another unit's explanation, scored on the same records. A good score is well above it."
VERDICTS = {  # of how often a judge finds the odd one: see intruder_verdict
    "chance": "at chance: no meaning in one sentence",
    "unclear": "unclear: too few rounds",
}


def intruder_verdict(low: float | None, high: float | None) -> str:
    """`chance` if guessing explains how often the odd one is found, `unclear` if it may, else empty."""
    if low is not None and low > INTRUDER_CHANCE:
        return ""
    return "chance" if high is not None and high < INTRUDER_CLEAR else "unclear"
