"""Configurations -> the LLMs that answer: the explainer's engine, and the scorers with theirs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from neuroexplain.config import EngineConfig, ScoreConfig
from neuroexplain.embedding.base import Embedder, open_embedder
from neuroexplain.llm.embeddings import ServerEmbedder
from neuroexplain.llm.engine import Engine
from neuroexplain.llm.server import ServerEngine
from neuroexplain.llm.server_list import ServerList
from neuroexplain.llm.vllm import serve_vllm
from neuroexplain.runs import Run
from neuroexplain.scorers.base import SCORERS, OpenScorer, Scorer

Tell = Callable[[str], None]  # shows a person a line


@contextmanager
def open_engines(
    run: Run, config: EngineConfig, score: ScoreConfig | None, *, explains: bool, tell: Tell
) -> Iterator[tuple[Engine | None, list[OpenScorer]]]:
    """The explainer's engine (None unless `explains`) and the scorers in their order, closed at the end.

    Scorers use the engine that `score` names; if it names none, the explainer's. Raises NeuroexplainError if
    an engine cannot be had.
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
        embedder = None
        if score is not None and any(scorer.needs == "vectors" for scorer in scorers):
            embedder = open_embedder(score.embedding, config.api_key)
            if isinstance(embedder, ServerEmbedder):
                stack.callback(embedder.close)
            tell(f"Comparing vectors of {embedder.model}.")
        opened = [open_scorer(scorer, scoring, run, tell, embedder) for scorer in scorers]
        if score is not None:
            for scorer_of_run in opened:
                scorer_of_run.n_read, scorer_of_run.with_bills = score.records, score.bills
                scorer_of_run.guesser = _open_guesser(scorer_of_run, run)
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
        server = ServerEngine(
            _servers_of(config) if serving is None else serving.url,
            config.model,
            api_key=config.api_key,
            max_wait=config.max_wait,
            in_flight=config.in_flight,
            tokenizer=config.tokenizer,
            trust_remote_code=config.trust_remote_code,
            exit_report=None if serving is None else serving.exit_report,
            tell=tell,
        )
        tell(f"Asking {server.model} at {server.place} ({server.version}).")
        engine = server
    stack.callback(engine.close)
    return engine


def _servers_of(config: EngineConfig) -> ServerList:
    """The servers that the configuration names, else the default one."""
    if config.servers is not None:
        return ServerList.read(Path(config.servers))
    if config.server is not None:
        return ServerList.parse(config.server)
    return ServerList.parse(config.default_server, "NEUROEXPLAIN_SERVER")


def _open_guesser(scorer: OpenScorer, run: Run) -> OpenScorer | None:
    """What guesses where an explanation fires: `lexical` by the scorer's model, if it needs a guess."""
    if (
        not run.n_background
        or not scorer.scorer.reads_background
        or not scorer.asks_per_record
        or scorer.scorer.needs != "distributions"
    ):
        return None
    return SCORERS.load("lexical").open(scorer.engine, run)


def open_scorer(
    scorer: Scorer, engine: Engine | None, run: Run, tell: Tell, embedder: Embedder | None = None
) -> OpenScorer:
    """The scorer with its engine. Of a server, the method for its probabilities is chosen and told."""
    if scorer.needs != "distributions":
        return scorer.open(embedder if scorer.needs == "vectors" else None, run)
    assert engine is not None
    opened = scorer.open(engine, run)
    example = opened.example()
    if isinstance(engine, ServerEngine) and example is not None:
        tell(f"Reading probabilities by {engine.find_method(example).name}.")
    return opened
