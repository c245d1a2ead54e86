"""Results of one command -> the store, in batches, with an account of what they cost."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from types import TracebackType
from typing import Self

from neuroexplain.evidence import ExplanationResult, PredictionResult, failures_among
from neuroexplain.formatting import session_text
from neuroexplain.llm.engine import Engine
from neuroexplain.runs import Run, Session
from neuroexplain.runtime.progress import Progress
from neuroexplain.scorers.base import OpenScorer
from neuroexplain.store.engine import Store
from neuroexplain.store.leases import Leases
from neuroexplain.store.save_explained import save_explained, save_session
from neuroexplain.store.statements import now

FLUSH_EVERY = 1.0  # seconds: a transaction a unit would cost more than the units, and a crash loses a second


class ResultWriter:
    """Stores complete results together, at the latest after a second, and whatever ends the command.

    With leases, a side's results are stored only if its lease has lasted.
    """

    def __init__(
        self,
        store: Store,
        run: Run,
        explainer: str | None,
        engine: Engine | None,
        scorer: OpenScorer | None,
        leases: Leases | None = None,
    ) -> None:
        self._store, self._run, self._leases = store, run, leases
        self._explainer, self._model = explainer, None if engine is None else engine.model
        self._scorer: str | None = None if scorer is None else scorer.name
        self._scorer_model: str | None = None if scorer is None else scorer.engine.model
        engines = (engine, None if scorer is None else scorer.engine)
        self._engines = list({id(e): e for e in engines if e is not None}.values())
        self._usage_before = [e.usage.snapshot() for e in self._engines]
        self._waiting: list[ExplanationResult] = []
        self._began = self._flushed = time.monotonic()
        self._started_at = now()
        self._session_id: int | None = None
        self._explaining_tokens = 0  # prompt tokens of new explanations; the scorer sent the others
        self._failures: Counter[str] = Counter()  # by status
        self.n_units = self.scored_tokens = 0

    @property
    def prompt_tokens(self) -> int:
        """Prompt tokens that the engines were sent since this writer began."""
        pairs = zip(self._engines, self._usage_before, strict=True)
        return sum(e.usage.prompt_tokens - before.prompt_tokens for e, before in pairs)

    @property
    def servers(self) -> tuple[int, int] | None:
        """Of a list of servers: those that answer, and all. Of two lists, the explainer's."""
        return next((n for n in (e.n_servers for e in self._engines) if n is not None), None)

    def add(self, results: Sequence[ExplanationResult], *, counts: bool = True) -> None:
        """Take one unit's complete results. Without `counts` the unit was counted before."""
        self._waiting += results
        self.n_units += counts
        for result in results:
            explanation = result.explanation
            if explanation.id is None:
                self._failures.update(failures_among([explanation.status]))
                self._explaining_tokens += explanation.provenance.prompt_tokens
            for new in result.predictions:
                self._failures.update(failures_among([new.prediction.status]))
                self.scored_tokens += sum(len(r.values) for r in new.prediction.records[_n_kept(new) :])
        if time.monotonic() - self._flushed >= FLUSH_EVERY:
            self.flush()

    def after(self, start: Progress, n_elsewhere: int = 0) -> Progress:
        """How far a stage is that began at `start`, with what was added since, and elsewhere."""
        return replace(
            start,
            done=start.done + self.n_units + n_elsewhere,
            failures=Counter(start.failures) + self._failures,
            tokens=self.prompt_tokens,
            servers=self.servers,
        )

    def flush(self) -> None:
        """Store the results that wait."""
        results, self._waiting = self._waiting, []
        if results:
            save_explained(self._store, self._run.id, results, self._leases)
            self._session_id = save_session(self._store, self._run.id, self._session(), self._session_id)
        self._flushed = time.monotonic()

    def summary(self) -> str | None:
        """What was done and what it cost, in a sentence; None if nothing was done."""
        return session_text(self._session()) if self.n_units else None

    def _session(self) -> Session:
        pairs = zip(self._engines, self._usage_before, strict=True)
        used = [engine.usage.since(before) for engine, before in pairs]
        cached = [usage.cached_tokens for usage in used if usage.cached_tokens is not None]
        prompt_tokens = self.prompt_tokens
        return Session(
            started_at=self._started_at,
            seconds=time.monotonic() - self._began,
            explainer=self._explainer,
            model=self._model,
            scorer=self._scorer,
            scorer_model=self._scorer_model,
            n_neurons=self.n_units,
            n_failed=self._failures.total(),
            prompt_tokens=prompt_tokens,
            cached_tokens=sum(cached) if cached else None,
            completion_tokens=sum(usage.completion_tokens for usage in used),
            scorer_prompt_tokens=0 if self._scorer is None else prompt_tokens - self._explaining_tokens,
            scored_tokens=self.scored_tokens,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.flush()


def _n_kept(result: PredictionResult) -> int:
    """How many of a new prediction's records are the stored ones; none if more of a split are read."""
    before, after = result.replaces, result.prediction
    if before is None or (before.n_read, before.with_bills) != (after.n_read, after.with_bills):
        return 0
    return len(before.records)
