"""Bills' simulator with yes and no: a capable model judges each token of a text, in its context."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from functools import lru_cache, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neuroexplain.errors import LlmReplyError, NeuroexplainError
from neuroexplain.evidence import Status, Tokens, VocabularyEntry
from neuroexplain.llm.engine import Engine, Message, chat_token_ids
from neuroexplain.llm.prompts import Prompt, displayed, level_lines, load_prompt
from neuroexplain.runs import Run
from neuroexplain.scorers._simulation import OpenSimulator, PredictedTrial, Predictions, Records, Simulator
from neuroexplain.scorers.base import Request
from neuroexplain.scoring.levels import expected_level, raised_level
from neuroexplain.scoring.side_evidence import Trial
from neuroexplain.stable_hash import stable_hash
from neuroexplain.units import CROP_LENGTH

LEVEL_WORDS = (("no", "yes"), tuple("0123456789"))  # from least to most; the first that are all single tokens
FITS = 5  # a worked token's level above which its line says yes
TOGETHER = 256  # scored tokens in one prompt of `digits`, at most
NEUTRAL_KEPT = 32_768  # prompts whose neutral levels are kept, 3.5 kB each: a layer of Llama-3-8B, until its nulls are simulated


class DigitsSimulator(OpenSimulator):
    """All at once as Bills et al. (2023) do, but by yes and no where they are tokens, and over a neutral explanation.

    Every token has a line of its own: its text, a tab, where the distribution over LEVEL_WORDS is read, and the least of them:
    right for most tokens, and the mass on all stays. The records of up to TOGETHER tokens follow each other in one prompt, in
    the order of a hash. What is predicted is not the expected level itself (with yes and no the share of yes), which says more
    of a token than of the explanation, but how much its odds are raised over what the same prompt gives with a neutral
    explanation: see `raised_level`. The neutral levels of records are asked for once, whatever explains them.

    The prompt is built as token ids, piece by piece, so the rows are known by construction.
    """

    def __init__(self, engine: Engine) -> None:
        self.scorer = SCORER
        self.engine = engine
        self.prompt: Prompt = load_prompt("simulate/digits")
        self.level_words, self.level_token_ids = find_level_words(engine.tokenizer)
        self._piece = lru_cache(maxsize=65_536)(self._encode)  # the same tokens come again and again
        self._head = lru_cache(maxsize=256)(self._encode_head)  # and each explanation with many records
        self._tab, self._mark, self._newline = (
            self._encode(piece) for piece in ("\t", self.level_words[0], "\n")
        )
        self._fixed = self._encode_head("")  # what all prompts begin with, and a little more
        self._neutral = Once(NEUTRAL_KEPT)

    def build_prompt(
        self, explanation: str | None, records: Records, vocabulary: Tokens
    ) -> tuple[list[int], list[int]]:
        """(token ids, rows): the level of each token is read at the distribution after its row, the end of its tab.

        Without an explanation it is the neutral one.
        """
        ids = list(self._head(None if explanation is None else displayed(explanation)))
        rows = []
        for place, record in enumerate(records):
            ids += self._newline if place else []
            for token_id in record:
                ids += self._piece(displayed(vocabulary[int(token_id)].text))
                ids += self._tab
                rows.append(len(ids) - 1)
                ids += self._mark
                ids += self._newline
        return ids, rows

    def _encode_head(self, explanation: str | None) -> list[int]:
        """What is the same for all records of an explanation: the chat up to where the model would answer."""
        least, *_, most = self.level_words
        worked = [
            turn
            for neuron in self.prompt.examples
            for turn in (
                self._turns(neuron.explanation)[1],
                Message(
                    "assistant",
                    level_lines((text, most if level > FITS else least) for text, level in neuron.records[0]),
                ),
            )
        ]
        before, asked, neutral = self._turns(explanation or "")
        tokenizer = self.engine.tokenizer
        ids = chat_token_ids(tokenizer, [before, *worked, neutral if explanation is None else asked])
        return ids if tokenizer.chat_template else [*ids, *self._encode("\n\n")]

    def _turns(self, explanation: str) -> list[Message]:
        return self.prompt.fill(
            {"no": self.level_words[0], "yes": self.level_words[-1], "explanation": explanation}
        )

    def simulate(self, explanation: str, records: Records, vocabulary: Tokens) -> Predictions:
        found: dict[int, PredictedTrial] = {}
        spent = 0
        for places in group_records(records):
            together = [records[place] for place in places]
            ids, rows = self.build_prompt(explanation, together, vocabulary)
            levels, mass = self._read(ids, rows)
            plain = self.build_prompt(None, together, vocabulary)
            key = hashlib.blake2b(np.asarray(plain[0], np.int64).tobytes(), digest_size=16).digest()
            (neutral, _), is_new = self._neutral.ask(key, partial(self._read, *plain))
            spent += len(ids) + is_new * len(plain[0])
            raised = raised_level(levels, neutral).astype(np.float32)
            ends = np.cumsum([len(record) for record in together])[:-1]
            mass = np.where(np.isnan(neutral), np.float32(0.0), mass)  # no prediction without both levels
            for place, *one in zip(places, np.split(raised, ends), np.split(mass, ends), strict=True):
                found[place] = PredictedTrial(*one)
        return Predictions([found[place] for place in range(len(records))], spent)

    def plan(self, explanation: str, trials: Sequence[Trial], tokens: Tokens) -> list[Request]:
        records = [trial.token_ids for trial in trials]
        requests = []
        for places in group_records(records):
            together = [records[place] for place in places]
            requests.append(Request(len(self.build_prompt(explanation, together, tokens)[0])))
            neutral = self.build_prompt(None, together, tokens)[0]
            requests.append(Request(len(neutral), tuple(neutral)))
        return requests

    def example(self) -> tuple[Sequence[int], Sequence[int], Sequence[Sequence[int]]]:
        records = [[0] * CROP_LENGTH] * (TOGETHER // CROP_LENGTH)
        ids, rows = self.build_prompt(None, records, {0: VocabularyEntry(0, " word", False)})
        return ids, rows, self.level_token_ids

    def _read(self, ids: list[int], rows: list[int]) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
        """(expected levels in 0..1, masses on all of them) at the rows; NaN and 0 where none is among what the engine gave."""
        shared = next((i for i, (a, b) in enumerate(zip(self._fixed, ids, strict=False)) if a != b), 0)
        probabilities = self.engine.level_distributions(ids, rows, self.level_token_ids, min(shared, rows[0]))
        if (
            probabilities.shape != (len(rows), len(self.level_token_ids))
            or not np.isfinite(probabilities).all()
        ):
            raise LlmReplyError(
                Status.LLM_ERROR, f"the engine answered distributions of shape {probabilities.shape}"
            )
        levels, mass = np.full(len(rows), np.nan), np.zeros(len(rows), np.float32)
        said = probabilities.sum(axis=1) > 0
        levels[said], mass[said] = expected_level(probabilities[said])
        return levels / (len(self.level_words) - 1), mass

    def _encode(self, text: str) -> list[int]:
        return list(self.engine.tokenizer(text, add_special_tokens=False).input_ids)


def group_records(records: Records) -> list[list[int]]:
    """The places of records that share a prompt, up to TOGETHER tokens; in the order of a hash, so that no kind is first."""
    order = sorted(range(len(records)), key=lambda place: (stable_hash(*map(int, records[place])), place))
    groups: list[list[int]] = []
    n_tokens = TOGETHER
    for place in order:
        n_tokens += len(records[place])
        if n_tokens > TOGETHER:
            groups.append([])
            n_tokens = len(records[place])
        groups[-1].append(place)
    return groups


class Once:
    """Answers that are asked for once, also by several threads at a time; the last `size` are kept, failures are not."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._known: dict[Hashable, Future[Any]] = {}
        self._lock = threading.Lock()

    def ask(self, key: Hashable, question: Callable[[], Any]) -> tuple[Any, bool]:
        """(the answer, whether it was asked for now)."""
        with self._lock:
            known = self._known.get(key)
            if known is None:
                mine = self._known[key] = Future()
                if len(self._known) > self._size:
                    del self._known[next(iter(self._known))]
        if known is not None:
            return known.result(), False
        try:
            mine.set_result(question())
        except BaseException as error:
            with self._lock:
                self._known.pop(key, None)
            mine.set_exception(error)
            raise
        return mine.result(), True


def find_level_words(tokenizer: Any) -> tuple[tuple[str, ...], list[list[int]]]:
    """The first of LEVEL_WORDS that are all single tokens, and the ids that spell each, with or without a space before it.

    Raises NeuroexplainError where there are none.
    """
    for words in LEVEL_WORDS:
        encoded = [
            [tokenizer(text, add_special_tokens=False).input_ids for text in (word, f" {word}")]
            for word in words
        ]
        spellings = [sorted({ids[0] for ids in each if len(ids) == 1}) for each in encoded]
        if all(spellings):
            return words, spellings
    raise NeuroexplainError(
        "The simulator's tokenizer has no single tokens for no and yes, or for digits: use --simulator lexical."
    )


class Digits(Simulator):
    """A capable model judges each token; sees context."""

    name = "digits"

    def open(self, engine: Any, run: Run) -> DigitsSimulator:
        return DigitsSimulator(engine)


SCORER = Digits()
