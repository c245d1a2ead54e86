"""Configurations -> the LLMs that answer: who explains, who scores."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from neuroexplain.config import EngineConfig, ScoreConfig
from neuroexplain.errors import NeuroexplainError
from neuroexplain.llm.engine import Engine
from neuroexplain.llm.server import ServerEngine
from neuroexplain.llm.vllm import serve_vllm
from neuroexplain.runs import Run
from neuroexplain.scorers.base import SCORERS, OpenScorer, Scorer

Tell = Callable[[str], None]


@contextmanager
def open_engines(
    run: Run, config: EngineConfig, score: ScoreConfig | None, *, explains: bool, tell: Tell
) -> Iterator[tuple[Engine | None, list[OpenScorer]]]:
    """The explainer's engine, where one is needed, and the scorers, where scores are wanted. Closed at the end.

    Scorers run on an engine of their own where one is named. Else those that need distributions run on the explainer's; those
    that need a whole vocabulary on the explainer's where that is local, else on the embedded model. Raises NeuroexplainError
    where one cannot be had.
    """
    with ExitStack() as stack:
        scorers = [SCORERS.load(name, "--scorer") for name in (() if score is None else score.scorers)]
        own = None if score is None else score.engine
        asks = any(scorer.needs == "distributions" for scorer in scorers)
        engine = open_engine(config, stack, tell) if explains or (asks and own is None) else None
        named = (
            engine if own is None else open_engine(own, stack, tell) if asks else None
        )  # for distributions
        yield (
            engine if explains else None,
            [_open(scorer, run, config, own, engine, named, tell) for scorer in scorers],
        )


def _open(
    scorer: Scorer,
    run: Run,
    config: EngineConfig,
    own: EngineConfig | None,
    engine: Engine | None,
    named: Engine | None,
    tell: Tell,
) -> OpenScorer:
    if scorer.needs == "nothing":
        return scorer.open(None, run)
    if scorer.needs == "vocabulary":
        return scorer.open(_open_vocabulary(scorer, config, own, named or engine, tell), run)
    assert named is not None
    opened = scorer.open(named, run)
    if isinstance(named, ServerEngine) and (example := opened.example()) is not None:
        tell(f"Reading distributions by {named.find_way(*example).name}.")
    return opened


def open_engine(config: EngineConfig, stack: ExitStack, tell: Tell) -> Engine:
    """The engine that is named, else the default server; closed with the stack."""
    engine: Engine
    if config.local is not None:
        from neuroexplain.llm.local import LocalEngine

        tell(f"Loading {config.local} ...")
        engine = LocalEngine(config.local)
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
            fate=None if serving is None else serving.fate,
        )
        tell(f"Asking {engine.model} at {engine.url} ({engine.version}).")
    stack.callback(engine.close)
    return engine


def _open_vocabulary(
    scorer: Scorer, config: EngineConfig, own: EngineConfig | None, opened: Engine | None, tell: Tell
) -> Engine:
    """A local engine: one that is open already, else the one that is named, else the embedded model."""
    from neuroexplain.llm.local import LocalEngine
    from neuroexplain.subject.load import embedded_model

    if own is not None and own.local is None:
        raise NeuroexplainError(
            f"The scorer {scorer.name} needs the distribution over a whole vocabulary, which a server does not give. "
            "Name a model for this process:  --simulator-local MODEL, or leave it out for the embedded one"
        )
    name = (own.local if own is not None else config.local) or embedded_model()
    if isinstance(opened, LocalEngine) and (own is None or opened.model == name):
        return opened
    tell(f"Loading {name} ...")
    return LocalEngine(name)
