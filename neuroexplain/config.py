"""What a command was asked to do: frozen, and checked when built.

Configurations stop at the pipeline: below it a function takes the values that it needs. Every message says what was asked
and what is possible.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from neuroexplain.errors import NeuroexplainError
from neuroexplain.units import PEAK_INDEX, RECORD_LENGTH, SEGMENT_LENGTH, Sign, UnitId

MOST_SECONDS = 1_000_000  # that one can ask to wait: eleven days
LAST_PEAK = SEGMENT_LENGTH - (RECORD_LENGTH - PEAK_INDEX) + 1  # 97: a peak needs 31 tokens after it

Sampling = Literal["random", "sequential"]
Windows = Literal["device", "host"]
ExplainerName = Literal["pairs", "excerpts", "meanings", "tokens"]


@dataclass(frozen=True)
class CollectConfig:
    """`neuroexplain collect`: which subject reads which text, and what is kept."""

    model: str  # hub name, folder or .gguf file
    dataset: tuple[str, ...]  # local files and globs, or one hub name
    dataset_config: str | None = None
    split: str = "train"
    text_column: str = "text"
    revision: str | None = None
    layers: tuple[int, ...] | None = None  # None: all
    source: str = "mlp"  # what the units are
    activation: str | None = None  # what is read of them; None: the source's first
    sign: Sign | None = None  # None: the source's own
    top_k: int = 32
    segments: int | None = None  # None: all that the corpus has
    sampling: Sampling = "random"
    positions: tuple[int, int] = (64, 97)  # half open
    special_peaks: bool = True
    random_records: int = 32
    seed: int = 0
    batch_size: int | None = None  # None: chosen for the device
    device: str = "auto"
    dtype: str = "auto"
    shard: tuple[int, int] | None = None  # (2, 8): the second of eight parts
    compile: bool = True  # on a GPU: few kernels in place of many; the run's versions say which it was
    windows: Windows = "device"  # where the records' activations are kept while collecting
    checkpoint_every: float = 300.0  # seconds

    def __post_init__(self) -> None:
        from neuroexplain.sources.base import SOURCES

        kind = SOURCES.load(self.source, "--source")
        if self.activation is not None and self.activation not in kind.activations:
            raise NeuroexplainError(
                f"--activation {self.activation!r} is not read of --source {self.source}: there is "
                f"{', '.join(kind.activations)}."
            )
        if not self.dataset:
            raise NeuroexplainError(
                "No text was named. Give files, a glob or a hub data set:  --dataset 'texts/*.jsonl'"
            )
        first, stop = self.positions
        if not PEAK_INDEX <= first < stop <= LAST_PEAK:
            raise NeuroexplainError(
                f"Positions {first}:{stop} cannot hold peaks: a record takes 32 tokens before its peak and 31 after, so in a "
                f"segment of 128 tokens {PEAK_INDEX} <= A < B <= {LAST_PEAK}. Try --positions 64:97"
            )
        for name, value, least in (("--top-k", self.top_k, 1), ("--random-records", self.random_records, 0)):
            if not least <= value <= 255:
                raise NeuroexplainError(f"{name} {value} is out of range: from {least} to 255")
        if self.segments is not None and self.segments < 1:
            raise NeuroexplainError(
                f"--segments {self.segments} asks for no text: 1 or more, or leave it out to read all"
            )
        if self.batch_size is not None and self.batch_size < 1:
            raise NeuroexplainError(f"--batch-size {self.batch_size} is out of range: 1 or more, or auto")
        if self.shard is not None and not 1 <= self.shard[0] <= self.shard[1]:
            raise NeuroexplainError(f"--shard {self.shard[0]}/{self.shard[1]} is no part: write 1/8 to 8/8")
        if len(self.devices) > 1 and self.shard is not None:
            raise NeuroexplainError(
                f"--device {self.device} makes parts by itself: leave out --shard, or name one device."
            )
        if (self.shard is not None or len(self.devices) > 1) and self.batch_size is None:
            raise NeuroexplainError(
                "The parts of a collection must be read in the same batch shape, which auto may choose differently on each "
                "machine or device. Give a number:  --batch-size 64"
            )
        if not 0 <= self.seed < 1 << 63:
            raise NeuroexplainError(f"--seed {self.seed} is out of range: from 0 to 2^63 - 1")
        if not self.checkpoint_every > 0:  # nor not a number
            raise NeuroexplainError(
                f"--checkpoint-every {self.checkpoint_every:g} is out of range: seconds, above 0"
            )
        if self.layers is not None and not self.layers:
            raise NeuroexplainError("No layer was named. Give one, a range or a list:  --layers 0-31")

    @property
    def read(self) -> str:
        """What is read of the source: `act` or `post` of neurons."""
        from neuroexplain.sources.base import SOURCES

        return self.activation or SOURCES.load(self.source).activations[0]

    @property
    def signed(self) -> Sign:
        """Which activations are collected: those that were asked for, else what suits the source."""
        from neuroexplain.sources.base import SOURCES

        return self.sign or SOURCES.load(self.source).sign

    @property
    def devices(self) -> tuple[str, ...]:
        """Each device that collects a part: `--device cuda:0,cuda:1`."""
        return tuple(device.strip() for device in self.device.split(","))

    def as_json(self) -> dict[str, Any]:
        """The configuration as JSON values, stored with the run: all that decides what is collected."""
        values = asdict(self) | {"activation": self.read, "sign": self.signed}
        del values["checkpoint_every"], values["windows"], values["compile"]
        for name in ("dataset", "layers", "positions"):
            values[name] = None if values[name] is None else list(values[name])
        values["shard"] = None if self.shard is None else {"parts": [self.shard[0]], "of": self.shard[1]}
        return values


EXPLAINER_NAMES: tuple[ExplainerName, ...] = ("pairs", "excerpts", "meanings", "tokens")
ONE_HYPOTHESIS: tuple[ExplainerName, ...] = (
    "pairs",
    "excerpts",
)  # explainers whose answers can be compared and revised
MOST_CANDIDATES, MOST_REVISIONS = 100, 10


@dataclass(frozen=True)
class EngineConfig:
    """Which engine answers: at most one of `server`, `vllm` and `local`; with none, the default server."""

    server: str | None = None  # URL
    vllm: str | None = None  # model to serve for this run
    vllm_args: tuple[str, ...] = ()  # more for its command line
    vllm_command: str | None = None  # what starts vLLM; None: found
    local: str | None = None  # hub name, folder or .gguf file
    model: str | None = None  # of the server; None: the only one it serves
    default_server: str = "http://127.0.0.1:8000/v1"  # where `vllm serve` listens
    api_key: str | None = field(default=None, repr=False)
    max_wait: float = 600.0  # seconds without any answer until a server is given up
    in_flight: int = 64  # requests at a time at most

    def __post_init__(self) -> None:
        if not 0 <= self.max_wait <= MOST_SECONDS:
            raise NeuroexplainError(
                f"--max-wait {self.max_wait:g} is out of range: seconds, 0 to {MOST_SECONDS:,}"
            )
        if self.api_key is not None and not re.fullmatch(r"[!-~]+", self.api_key):
            raise NeuroexplainError(
                "NEUROEXPLAIN_API_KEY holds what no key holds: a space, a line break or letters beyond ASCII."
            )
        if self.server is not None and not self.server.strip():
            raise NeuroexplainError(
                "--server is empty. Give the URL of a vLLM server:  --server http://127.0.0.1:8000/v1"
            )
        for name, url in (("--server", self.server), ("NEUROEXPLAIN_SERVER", self.default_server)):
            if "@" in (url or ""):
                raise NeuroexplainError(
                    f"{name} holds a name or a key before @. Leave it out, and set NEUROEXPLAIN_API_KEY."
                )
        if self.in_flight < 1:
            raise NeuroexplainError(f"--in-flight {self.in_flight} is out of range: 1 or more")
        named = [("the server", self.server), ("vLLM with", self.vllm), ("the local model", self.local)]
        given = [f"{what} {name}" for what, name in named if name is not None]
        if len(given) > 1:
            raise NeuroexplainError(f"Two engines were named: {' and '.join(given)}. Give one of them.")
        if self.local is not None and self.model is not None:
            raise NeuroexplainError(
                f"A model of a server ({self.model}) and a local one ({self.local}) were named. Give one."
            )


@dataclass(frozen=True)
class ScoreConfig:
    """How explanations are scored."""

    scorers: tuple[str, ...] = ("digits",)  # the first chooses among candidates
    engine: EngineConfig | None = None  # the scorers' own; None: the explainer's

    def __post_init__(self) -> None:
        from neuroexplain.scorers.base import SCORERS

        if not self.scorers:
            raise NeuroexplainError("No scorer was named. Give one or more:  --scorer digits,lexical")
        for name in self.scorers:
            SCORERS.load(name, "--scorer")
        if len(set(self.scorers)) < len(self.scorers):
            raise NeuroexplainError(f"--scorer {','.join(self.scorers)} names one twice.")


@dataclass(frozen=True)
class ExplainConfig:
    """`neuroexplain explain`: which neurons, by which explainer."""

    units: tuple[UnitId, ...]
    explainer: ExplainerName = "pairs"
    seed: int = 0
    retry_failed: bool = False
    candidates: int = 1  # explanations of each neuron, of which `select` chooses one
    revise: int = 0  # times that the chosen one is given back with what it got wrong

    def __post_init__(self) -> None:
        if not 1 <= self.candidates <= MOST_CANDIDATES:
            raise NeuroexplainError(f"--candidates {self.candidates} is out of range: 1 to {MOST_CANDIDATES}")
        if not 0 <= self.revise <= MOST_REVISIONS:
            raise NeuroexplainError(f"--revise {self.revise} is out of range: 0 to {MOST_REVISIONS}")
        if (self.candidates > 1 or self.revise) and self.explainer not in ONE_HYPOTHESIS:
            raise NeuroexplainError(
                f"--candidates and --revise go with the explainers {' and '.join(ONE_HYPOTHESIS)}, not with {self.explainer}."
            )
        if not self.units:
            raise NeuroexplainError(
                "No unit was named. Give a layer, layers or units:  --layer 15 | --layers 3-5 | --units 15:0-99,20:7"
            )
        if self.explainer not in EXPLAINER_NAMES:
            raise NeuroexplainError(
                f"--explainer {self.explainer!r} is not one of {', '.join(EXPLAINER_NAMES)}."
            )

    @property
    def asks_llm(self) -> bool:
        return self.explainer != "tokens"
