"""Configurations -> the LLMs that answer: who explains, who simulates."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from neuroexplain.config import EngineConfig, ScoreConfig
from neuroexplain.errors import NeuroexplainError
from neuroexplain.llm.engine import Engine
from neuroexplain.llm.server import ServerEngine
from neuroexplain.llm.simulator import TOGETHER, DigitsSimulator, LexicalSimulator, Simulator
from neuroexplain.llm.vllm import serve_vllm
from neuroexplain.types import CROP_LENGTH, Run, VocabularyEntry

Tell = Callable[[str], None]


@contextmanager
def open_engines(
    run: Run, config: EngineConfig, score: ScoreConfig | None, *, explains: bool, tell: Tell
) -> Iterator[tuple[Engine | None, Simulator | None]]:
    """The explainer's engine, where one is needed, and the simulator, where scores are wanted. Closed at the end.

    The simulator runs on an engine of its own where one is named; else `digits` on the explainer's, `lexical` on the
    explainer's where that is local, else on the embedded model. Raises NeuroexplainError where one cannot be had.
    """
    with ExitStack() as stack:
        own = score.engine if score is not None else None
        shares = score is not None and score.simulator == "digits" and own is None
        engine = open_engine(config, stack, tell) if explains or shares else None
        if score is None:
            yield engine, None
        elif score.simulator == "digits":
            chosen = engine if own is None else open_engine(own, stack, tell)
            assert chosen is not None
            simulator = DigitsSimulator(chosen)
            if isinstance(chosen, ServerEngine):
                tell(f"Reading distributions by {_find_way(chosen, simulator)}.")
            yield engine if explains else None, simulator
        else:
            yield engine, _open_lexical(run, config, own, engine, tell)


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
            serving = stack.enter_context(serve_vllm(config.vllm, config.vllm_args, config.vllm_command, tell))
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


def _find_way(engine: ServerEngine, simulator: DigitsSimulator) -> str:
    """Find out by a prompt of the usual size how the server gives distributions: before the run, not at its first score."""
    records = [[0] * CROP_LENGTH] * (TOGETHER // CROP_LENGTH)
    ids, rows = simulator.build_prompt(None, records, {0: VocabularyEntry(0, " word", False)})
    return engine.find_way(ids, rows, simulator.level_token_ids).name


def _open_lexical(run: Run, config: EngineConfig, own: EngineConfig | None, engine: Engine | None, tell: Tell) -> Simulator:
    from neuroexplain.llm.local import LocalEngine
    from neuroexplain.subject.load import embedded_model

    if own is not None and own.local is None:
        raise NeuroexplainError(
            "The simulator lexical needs the distribution over a whole vocabulary, which a server does not give. "
            "Name a model for this process:  --simulator-local MODEL, or leave it out for the embedded one"
        )
    if own is None and isinstance(engine, LocalEngine):
        return LexicalSimulator(engine, run.tokenizer_sha256)
    name = (own.local if own is not None else config.local) or embedded_model()
    tell(f"Loading {name} ...")
    return LexicalSimulator(LocalEngine(name), run.tokenizer_sha256)
