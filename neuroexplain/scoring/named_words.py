"""Which tokens' words stand in an explanation, so that a score can do without them (pure).

A simulator that reads words rewards a list of a unit's tokens. The same score without the tokens whose word
is named tells what an explanation predicts of words that it does not name.

A word is a run of letters, digits and apostrophes. A token belongs to each word that it spells a part of, so
every piece of a named word is left out. Two words are the same if their stems are: casefolded, without a
possessive 's, then without the endings of plurals and verbs (-s, -es, -ies, -ed, -ied, -ing, and a final -e),
with a consonant that was doubled before one of them (`running`) made single. In scripts without spaces each
token is a word, and is named if its text stands in the explanation. White space and punctuation are no words,
and are never named: explanations use them between words.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

WORD = re.compile(r"[^\W_]+(?:['\u2019][^\W_]+)*")
# Scripts without spaces between words: Thai, Lao, Tibetan, Myanmar, Khmer, and Chinese and Japanese letters.
WITHOUT_SPACES = re.compile(
    "[\u0e00-\u0eff\u0f00-\u0fff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"
)
LEAST_STEM = 3  # letters that must be left when an ending is taken off


@lru_cache(maxsize=1 << 16)
def stem_of(word: str) -> str:
    """The stem of a word, by the rule above."""
    stem = re.sub("['\u2019]s?$", "", word.casefold())
    for ending, instead in (("ies", "y"), ("ied", "y"), ("ing", ""), ("ed", ""), ("es", ""), ("s", "")):
        left = stem.removesuffix(ending)
        if left == stem or len(left) < LEAST_STEM or (ending == "s" and left.endswith("s")):
            continue
        is_doubled = ending in ("ing", "ed") and left[-1:] == left[-2:-1] and left[-1] not in "aeiouls"
        stem = (left[:-1] if is_doubled else left) + instead
        break
    left = stem.removesuffix("e")
    return left if len(left) >= LEAST_STEM else stem


@lru_cache(maxsize=4096)
def _stems_of(explanation: str) -> frozenset[str]:
    return frozenset(stem_of(word) for word in WORD.findall(explanation))


def find_named(texts: Sequence[str], explanation: str) -> NDArray[np.bool_]:
    """Which tokens of a record belong to a word that stands in the explanation, [n].

    texts: each token's text where it stands, so that joined they are the record's text.
    """
    stems, folded = _stems_of(explanation), explanation.casefold()
    ends = list(accumulate(map(len, texts)))
    named = np.zeros(len(texts), np.bool_)
    for match in WORD.finditer("".join(texts)):
        if WITHOUT_SPACES.search(match[0]) is None and stem_of(match[0]) in stems:
            named[_tokens_of(match, ends)] = True
    for place, text in enumerate(texts):
        if WITHOUT_SPACES.search(text) and text.strip().casefold() in folded:
            named[place] = True
    return named


def _tokens_of(match: re.Match[str], ends: Sequence[int]) -> slice:
    """The tokens that spell a part of the match. ends: where each token's text ends, ascending."""
    first = bisect_right(ends, match.start())
    return slice(first, bisect_right(ends, match.end() - 1, first) + 1)


def words_of_tokens(texts: Sequence[str]) -> list[str]:
    """The word that each token of a record spells or spells a part of, [n]; empty for white space.

    texts: each token's text where it stands, so that joined they are the record's text. A token of no word
    or of several, and each token in scripts without spaces, is taken as it is, without white space.
    """
    ends = list(accumulate(map(len, texts)))
    words_of: list[list[str]] = [[] for _ in texts]
    for match in WORD.finditer("".join(texts)):
        if WITHOUT_SPACES.search(match[0]) is None:
            for words in words_of[_tokens_of(match, ends)]:
                words.append(match[0])
    return [
        words[0] if len(words) == 1 else text.strip() for words, text in zip(words_of, texts, strict=True)
    ]
