"""Configurations -> the LLMs that answer: the explainer's engine, and the scorers with theirs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from neuroexplain.config import EngineConfig, ScoreConfig
from neuroexplain.errors import NeuroexplainError
from neuroexplain.llm.engine import Engine
from neuroexplain.llm.server import ServerEngine
from neuroexplain.llm.vllm import serve_vllm
from neuroexplain.runs import Run
from neuroexplain.scorers.base import SCORERS, OpenScorer, Scorer

Tell = Callable[[str], None]  # shows a person a line


@contextmanager
def open_engines(
    run: Run, config: EngineConfig, score: ScoreConfig | None, *, explains: bool, tell: Tell
) -> Iterator[tuple[Engine | None, list[OpenScorer]]]:
    """The explainer's engine (None unless `explains`) and the scorers in their order, closed at the end.

    Scorers use the engine that `score` names. If it names none, scorers that need distributions use the
    explainer's engine; scorers that need a whole vocabulary use the explainer's engine if it is local, else
    the embedded model. Raises NeuroexplainError if an engine cannot be had.
    """
    scorers = [SCORERS.load(name, "--scorer") for name in (() if score is None else score.scorers)]
    named = None if score is None else score.engine
    needs_distributions = any(scorer.needs == "distributions" for scorer in scorers)
    with ExitStack() as stack:
        explaining = scoring = None
        if explains or (needs_distributions and named is None):
            explaining = open_engine(config, stack, tell)
        if named is None:
            scoring = explaining
        elif needs_distributions:
            scoring = open_engine(named, stack, tell)
        engines = ScorerEngines(config, named, explaining, scoring, tell)
        opened = [engines.open_scorer(scorer, run) for scorer in scorers]
        if score is not None:
            for open_scorer in opened:
                open_scorer.n_read, open_scorer.with_bills = score.records, score.bills
        yield explaining if explains else None, opened


def open_engine(config: EngineConfig, stack: ExitStack, tell: Tell) -> Engine:
    """The engine that the configuration names, else the default server; closed with the stack."""
    engine: Engine
    if config.local is not None:
        from neuroexplain.llm.local import LocalEngine

        tell(f"Loading {config.local} ...")
        engine = LocalEngine(config.local, trust_remote_code=config.trust_remote_code)
    else:
        serving = None
        if config.vllm is not None:
            serving = stack.enter_context(
                serve_vllm(config.vllm, config.vllm_args, config.vllm_command, tell)
            )
        engine = ServerEngine(
            config.server or config.default_server if serving is None else serving.url,
            config.model,
            api_key=config.api_key,
            max_wait=config.max_wait,
            in_flight=config.in_flight,
            tokenizer=config.tokenizer,
            trust_remote_code=config.trust_remote_code,
            exit_report=None if serving is None else serving.exit_report,
        )
        tell(f"Asking {engine.model} at {engine.url} ({engine.version}).")
    stack.callback(engine.close)
    return engine


@dataclass(frozen=True)
class ScorerEngines:
    """The engines that are open, from which each scorer gets the one that it needs."""

    config: EngineConfig  # the explainer's
    named: EngineConfig | None  # the scorers' own, if one is named
    explaining: Engine | None
    scoring: Engine | None  # for distributions
    tell: Tell

    def open_scorer(self, scorer: Scorer, run: Run) -> OpenScorer:
        """The scorer with an engine that gives what it needs."""
        if scorer.needs == "nothing":
            return scorer.open(None, run)
        if scorer.needs == "vocabulary":
            return scorer.open(self._vocabulary_engine(scorer), run)
        assert self.scoring is not None
        opened = scorer.open(self.scoring, run)
        example = opened.example()
        if isinstance(self.scoring, ServerEngine) and example is not None:
            method = self.scoring.find_method(example)
            self.tell(f"Reading distributions by {method.name}.")
        return opened

    def _vocabulary_engine(self, scorer: Scorer) -> Engine:
        """A local engine: an open one of the right model, else the named model, else the embedded one."""
        from neuroexplain.llm.local import LocalEngine
        from neuroexplain.subject.load import embedded_model

        if self.named is not None and self.named.local is None:
            raise NeuroexplainError(
                f"The scorer {scorer.name} needs the distribution over a whole vocabulary, which a "
                "server does not give. Name a model for this process:  --simulator-local MODEL, or "
                "leave it out for the embedded one"
            )
        config = self.config if self.named is None else self.named
        model = config.local or embedded_model()
        opened = self.scoring or self.explaining
        if isinstance(opened, LocalEngine) and (self.named is None or opened.model == model):
            return opened
        self.tell(f"Loading {model} ...")
        return LocalEngine(model, trust_remote_code=config.trust_remote_code)
