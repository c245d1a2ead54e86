"""What one command finds out goes to the store in batches, with an account of what it cost."""

from __future__ import annotations

import time
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from neuroexplain.evidence import Explained
from neuroexplain.formatting import session_text
from neuroexplain.llm.engine import Engine
from neuroexplain.runs import Run, Session
from neuroexplain.scorers.base import OpenScorer
from neuroexplain.store.engine import Store
from neuroexplain.store.save_explained import save_explained, save_session
from neuroexplain.store.statements import now

FLUSH_EVERY = 1.0  # seconds


class Saving:
    """Complete results wait here for up to a second and are stored together. Whatever ends the command, they are stored."""

    def __init__(
        self, store: Store, run: Run, explainer: str | None, engine: Engine | None, scorer: OpenScorer | None
    ) -> None:
        self._store, self._run = store, run
        self._explainer, self._model = explainer, engine.model if engine is not None else None
        self._scorer: str | None = None if scorer is None else scorer.name
        self._scorer_model: str | None = None if scorer is None else scorer.engine.model
        self._engines = list(
            {id(e): e for e in (engine, scorer.engine if scorer else None) if e is not None}.values()
        )
        self._before = [
            (e.used.prompt_tokens, e.used.completion_tokens, e.used.cached_tokens or 0) for e in self._engines
        ]
        self._waiting: list[Explained] = []
        self._began = self._flushed = time.monotonic()
        self._started_at = now()
        self._id: int | None = None
        self._asked = 0  # prompt tokens of new explanations
        self.n_units = self.n_failed = self.scored_tokens = 0

    @property
    def prompt_tokens(self) -> int:
        """What the engines were sent since this began."""
        return sum(
            e.used.prompt_tokens - before[0] for e, before in zip(self._engines, self._before, strict=True)
        )

    def add(self, made: Sequence[Explained], *, counts: bool = True) -> None:
        """One neuron's results, complete; without `counts` the neuron was counted before."""
        self._waiting += made
        self.n_units += counts
        for one in made:
            if one.explanation.id is None:
                self.n_failed += one.explanation.status.failed
                self._asked += one.explanation.provenance.prompt_tokens
            if one.prediction is not None:
                self.n_failed += one.prediction.status.failed
                before = 0 if one.replaces is None else len(one.replaces.records)
                self.scored_tokens += sum(len(r.values) for r in one.prediction.records[before:])
        if time.monotonic() - self._flushed >= FLUSH_EVERY:
            self.flush()

    def flush(self) -> None:
        """Store what waits."""
        waiting, self._waiting = self._waiting, []
        if waiting:
            save_explained(self._store, self._run.id, waiting)
            self._id = save_session(self._store, self._run.id, self._session(), self._id)
        self._flushed = time.monotonic()

    def summary(self) -> str | None:
        """What was done and what it cost, in a sentence; None where nothing was."""
        return session_text(self._session()) if self.n_units else None

    def _session(self) -> Session:
        cached = [e.used.cached_tokens for e in self._engines]
        known = [
            now_cached - before[2]
            for now_cached, before in zip(cached, self._before, strict=True)
            if now_cached is not None
        ]
        return Session(
            started_at=self._started_at,
            seconds=time.monotonic() - self._began,
            explainer=self._explainer,
            model=self._model,
            scorer=self._scorer,
            scorer_model=self._scorer_model,
            n_neurons=self.n_units,
            n_failed=self.n_failed,
            prompt_tokens=self.prompt_tokens,
            cached_tokens=sum(known) if known else None,
            completion_tokens=sum(
                e.used.completion_tokens - before[1]
                for e, before in zip(self._engines, self._before, strict=True)
            ),
            scorer_prompt_tokens=0 if self._scorer is None else self.prompt_tokens - self._asked,
            scored_tokens=self.scored_tokens,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.flush()
