"""What a command was asked to do, frozen and checked when built.

A configuration stops at the run: below it a function takes the values that it needs. Every message says what
was asked and what is possible.
"""

from __future__ import annotations

import math
import os
import re
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from neuroexplain.embedding.base import DEFAULT_EMBEDDING
from neuroexplain.errors import NeuroexplainError
from neuroexplain.units import PEAK_INDEX, RECORD_LENGTH, SEGMENT_LENGTH, SIDES, Sign, UnitId

if TYPE_CHECKING:
    from neuroexplain.sources.base import SourceKind

MOST_SECONDS = 1_000_000  # eleven days: a longer wait is a typing mistake
LAST_PEAK = SEGMENT_LENGTH - (RECORD_LENGTH - PEAK_INDEX) + 1  # 97: a peak needs 31 tokens after it
MOST_RECORDS = 255  # of a kind and unit: the store keeps a record's rank in one byte
MOST_BACKGROUND = 16_384  # records: the store keeps a place among them in two bytes
BACKGROUND_RECORDS = 1_024  # of sparse units: docs/scores.md
MOST_CANDIDATES = 100  # each is a request and its scoring
MOST_REVISIONS = 10  # likewise, one after the other

Sampling = Literal["random", "sequential"]
Windows = Literal["device", "host"]


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
    source: str = "mlp"  # the kind of units: a name of sources.base.SOURCES
    dictionary: str | None = None  # what encodes latents: folder, glob or hub name; None: nothing
    site: str | None = None  # what the dictionary reads, a hook's name; None: its folder tells
    input_scale: float | None = None  # factor on that; None: likewise
    subtract_b_dec: bool | None = None  # from that; None: the rule of its format
    force_model: bool = False  # whether the dictionary may have been made for a model of another name
    activation: str | None = None  # which value of a unit is read; None: the source's first
    sign: Sign | None = None  # None: the source's own
    top_k: int = 32
    segments: int | None = None  # how many to read; None: the whole corpus
    sampling: Sampling = "random"
    positions: tuple[int, int] = (64, 97)  # half open
    special_peaks: bool = True
    random_records: int = 32  # of all splits together, like the sampled ones
    sampled_records: int = 40  # of each side; 0: the run has no population score
    background_records: int | None = None  # further random ones of `report`; None: by the kind of units
    seed: int = 0
    batch_size: int | None = None  # None: chosen for the device
    device: str = "auto"
    dtype: str = "auto"
    shard: tuple[int, int] | None = None  # (2, 8): the second of eight parts
    compile: bool = True  # on a GPU: fewer kernels; the run's versions say whether it was done
    windows: Windows = "device"  # where the records' activations are kept while collecting
    checkpoint_every: float = 300.0  # seconds
    keep_tokens: bool = False  # whether the corpus's tokens stay beside the database, for other parts
    trust_remote_code: bool = False  # whether code that comes with the model is run

    def __post_init__(self) -> None:
        self._check_text_and_units()
        first, stop = self.positions
        if not PEAK_INDEX <= first < stop <= LAST_PEAK:
            raise NeuroexplainError(
                f"Positions {first}:{stop} cannot hold peaks: a record takes 32 tokens before its peak and "
                f"31 after, so in a segment of 128 tokens {PEAK_INDEX} <= A < B <= {LAST_PEAK}. "
                "Try --positions 64:97"
            )
        for option, n, least in (("--top-k", self.top_k, 1), ("--random-records", self.random_records, 0)):
            _check_range(option, n, least <= n <= MOST_RECORDS, f"from {least} to {MOST_RECORDS}")
        n, most = self.sampled_records, MOST_RECORDS // len(SIDES[self.collected_sign])
        _check_range("--sampled-records", n, 0 <= n <= most, f"from 0 to {most}")
        if self.sampled_records and not self.random_records:
            raise NeuroexplainError(
                "--random-records 0 leaves the population score without the text on which a unit is silent. "
                "Leave it out, or collect no sampled records either:  --sampled-records 0"
            )
        self._check_background()
        _check_range("--seed", self.seed, 0 <= self.seed < 1 << 63, "from 0 to 2^63 - 1")
        seconds = self.checkpoint_every
        _check_range("--checkpoint-every", seconds, seconds > 0, "seconds, above 0")
        if self.segments is not None and self.segments < 1:
            raise NeuroexplainError(
                f"--segments {self.segments} asks for no text: 1 or more, or leave it out to read all"
            )
        if self.batch_size is not None:
            _check_range("--batch-size", self.batch_size, self.batch_size >= 1, "1 or more, or auto")
        self._check_parts()

    def _check_text_and_units(self) -> None:
        from neuroexplain.sources.base import SOURCES, TakesDictionary

        kind = SOURCES.load(self.source, "--source")
        activations = kind.activations
        self._check_dictionary(isinstance(kind, TakesDictionary))
        if self.activation is not None and self.activation not in activations:
            raise NeuroexplainError(
                f"--activation {self.activation!r} is not read of --source {self.source}: there is "
                f"{', '.join(activations)}."
            )
        if not self.dataset:
            raise NeuroexplainError(
                "No text was named. Give files, a glob or a hub data set:  --dataset 'texts/*.jsonl'"
            )
        if self.layers is not None and not self.layers:
            raise NeuroexplainError("No layer was named. Give one, a range or a list:  --layers 0-31")

    def _check_background(self) -> None:
        n = self.background_records or 0
        _check_range("--background-records", n, 0 <= n <= MOST_BACKGROUND, f"from 0 to {MOST_BACKGROUND:,}")
        if n and self.dictionary is None:
            raise NeuroexplainError(
                f"--background-records goes with the latents of a dictionary: --source {self.source} has "
                "small values where its units do not fire, and 16 random records tell of them."
            )
        if n and not self.sampled_records:
            raise NeuroexplainError(
                "--background-records goes with sampled records, and --sampled-records 0 takes none. "
                "Leave one of the two out."
            )

    def _check_dictionary(self, is_needed: bool) -> None:
        if is_needed and self.dictionary is None:
            raise NeuroexplainError(
                f"--source {self.source} reads the latents of a dictionary. Name its folder, or a name on "
                "the hub:  --dictionary FOLDER"
            )
        options = {
            "--dictionary": self.dictionary,
            "--site": self.site,
            "--input-scale": self.input_scale,
            "--subtract-b-dec": self.subtract_b_dec,
            "--force-model": self.force_model or None,
        }
        named = [option for option, value in options.items() if value is not None]
        if named and not is_needed:
            raise NeuroexplainError(
                f"{named[0]} goes with the latents of a dictionary, and --source {self.source} has none. Say "
                "which they are:  --source sae | --source transcoder"
            )
        scale = self.input_scale
        _check_range(
            "--input-scale", 1.0 if scale is None else scale, scale is None or 0 < scale < math.inf, "above 0"
        )

    def _check_parts(self) -> None:
        """Several machines (--shard) or several devices may each read a part, but not both."""
        has_devices = len(self.devices) > 1
        if self.shard is not None:
            number, n = self.shard
            if not 1 <= number <= n:
                raise NeuroexplainError(f"--shard {number}/{n} is no part: write 1/8 to 8/8")
            if has_devices:
                raise NeuroexplainError(
                    f"--device {self.device} makes parts by itself: leave out --shard, or name one device."
                )
        if (self.shard is not None or has_devices) and self.batch_size is None:
            raise NeuroexplainError(
                "The parts of a collection must be read in the same batch shape, which auto may choose "
                "differently on each machine or device. Give a number:  --batch-size 64"
            )

    @property
    def n_background(self) -> int:
        """How many random records of `report` are kept beside those of --random-records."""
        if self.background_records is not None:
            return self.background_records
        return BACKGROUND_RECORDS if self.dictionary is not None and self.sampled_records else 0

    def open_kind(self) -> SourceKind:
        """The kind of units, with the dictionary that was named."""
        from neuroexplain.sources._choice import Choice
        from neuroexplain.sources.base import SOURCES, TakesDictionary

        kind = SOURCES.load(self.source, "--source")
        if self.dictionary is None:
            return kind
        assert isinstance(kind, TakesDictionary)
        choice = Choice(self.dictionary, self.site, self.input_scale, self.subtract_b_dec)
        return kind.with_dictionary(choice, any_model=self.force_model)

    @property
    def activation_name(self) -> str:
        """The activation that is read: the option's, or else the source's first."""
        from neuroexplain.sources.base import SOURCES

        return self.activation or SOURCES.load(self.source).activations[0]

    @property
    def collected_sign(self) -> Sign:
        """The sign of the activations that are collected: the option's, or else the source's."""
        from neuroexplain.sources.base import SOURCES

        return self.sign or SOURCES.load(self.source).sign

    @property
    def devices(self) -> tuple[str, ...]:
        """Each device that collects a part: `--device cuda:0,cuda:1`."""
        return tuple(device.strip() for device in self.device.split(","))

    def as_json(self) -> dict[str, Any]:
        """The configuration as JSON values, stored with the run: all that decides what is collected."""
        values = asdict(self) | {"activation": self.activation_name, "sign": self.collected_sign}
        del values["checkpoint_every"], values["windows"], values["compile"]
        del values["trust_remote_code"], values["keep_tokens"]
        if self.dictionary is None:  # runs of earlier versions, which had none, stay the same
            for name in ("dictionary", "site", "input_scale", "subtract_b_dec", "force_model"):
                del values[name]
            del values["background_records"]
        else:
            values["background_records"] = self.n_background
        for name in ("dataset", "layers", "positions"):
            values[name] = None if values[name] is None else list(values[name])
        values["shard"] = None if self.shard is None else {"parts": [self.shard[0]], "of": self.shard[1]}
        return values


@dataclass(frozen=True)
class EngineConfig:
    """Which engine answers: one of `server`, `servers`, `vllm` and `local`; with none, the default server."""

    server: str | None = None  # URL, or several with commas between them, which answer together
    servers: str | None = None  # file with a URL a line, read again when it changes
    vllm: str | None = None  # model that a vLLM server of this run's own serves
    vllm_args: tuple[str, ...] = ()  # further arguments of that server
    vllm_command: str | None = None  # program that starts vLLM; None: searched for
    local: str | None = None  # hub name, folder or .gguf file
    trust_remote_code: bool = False  # whether code that comes with the local model is run
    model: str | None = None  # model of the server; None: the only one that it serves
    tokenizer: str | None = None  # of the server's model, hub name or folder; None: found by the model's name
    default_server: str = "http://127.0.0.1:8000/v1"  # where `vllm serve` listens
    api_key: str | None = field(default=None, repr=False)
    max_wait: float = 600.0  # seconds without any answer until a server is given up
    in_flight: int = 64  # most requests at a time

    def __post_init__(self) -> None:
        seconds = self.max_wait
        _check_range("--max-wait", seconds, 0 <= seconds <= MOST_SECONDS, f"seconds, 0 to {MOST_SECONDS:,}")
        _check_range("--in-flight", self.in_flight, self.in_flight >= 1, "1 or more")
        if self.api_key is not None and not re.fullmatch(r"[!-~]+", self.api_key):
            raise NeuroexplainError(
                "NEUROEXPLAIN_API_KEY holds a space, a line break or a letter beyond ASCII, and a key holds "
                "none of these. Set it to the key alone."
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
        engines = (
            ("the server", self.server),
            ("the servers of", self.servers),
            ("vLLM with", self.vllm),
            ("the local model", self.local),
        )
        named = [f"{kind} {name}" for kind, name in engines if name is not None]
        if len(named) > 1:
            raise NeuroexplainError(f"Two engines were named: {' and '.join(named)}. Give one of them.")
        if self.local is not None and self.model is not None:
            raise NeuroexplainError(
                f"A model of a server ({self.model}) and a local one ({self.local}) were named. Give one."
            )


def find_api_key() -> str | None:
    """The key of servers, NEUROEXPLAIN_API_KEY. Raises NeuroexplainError if no key looks like that."""
    return EngineConfig(api_key=os.environ.get("NEUROEXPLAIN_API_KEY", "").strip() or None).api_key


@dataclass(frozen=True)
class ScoreConfig:
    """How explanations are scored."""

    scorers: tuple[str, ...] = ("combined",)  # the first chooses among candidates
    engine: EngineConfig | None = None  # the scorers' own; None: the explainer's
    records: int | None = None  # sampled records of a split, and random ones; None: by what a scorer costs
    bills: bool | None = (
        None  # whether Bills' score is computed beside that of the population; None: likewise
    )
    embedding: str = DEFAULT_EMBEDDING  # what the scorer `embedding` compares by

    def __post_init__(self) -> None:
        from neuroexplain.scorers.base import SCORERS

        if self.records is not None:
            n = self.records
            _check_range("--score-records", n, 2 <= n <= MOST_RECORDS, f"from 2 to {MOST_RECORDS}")

        if not self.scorers:
            raise NeuroexplainError("No scorer was named. Give one or more:  --scorer combined,lexical")
        for name in self.scorers:
            SCORERS.load(name, "--scorer")
        if len(set(self.scorers)) < len(self.scorers):
            raise NeuroexplainError(f"--scorer {','.join(self.scorers)} names a scorer twice.")


@dataclass(frozen=True)
class ExplainConfig:
    """`neuroexplain explain`: which units, by which explainer."""

    units: tuple[UnitId, ...]
    explainer: str = "category"  # a name of explaining.explainers.EXPLAINERS
    seed: int = 0
    retry_failed: bool = False
    candidates: int = 1  # explanations of each unit, of which the best on `select` is chosen
    revise: int = 0  # how often the explainer sees the chosen one's mistakes and answers again

    def __post_init__(self) -> None:
        from neuroexplain.explaining.explainers import EXPLAINERS

        if not self.units:
            raise NeuroexplainError(
                "No unit was named. Give a layer, layers or units:  "
                "--layer 15 | --layers 3-5 | --units 15:0-99,20:7"
            )
        explainer = EXPLAINERS.get(self.explainer)
        if explainer is None:
            raise NeuroexplainError(f"--explainer {self.explainer!r} is not one of {', '.join(EXPLAINERS)}.")
        n = self.candidates
        _check_range("--candidates", n, 1 <= n <= MOST_CANDIDATES, f"1 to {MOST_CANDIDATES}")
        _check_range("--revise", self.revise, 0 <= self.revise <= MOST_REVISIONS, f"0 to {MOST_REVISIONS}")
        if (self.candidates > 1 or self.revise) and not explainer.can_revise:
            names = " and ".join(name for name, other in EXPLAINERS.items() if other.can_revise)
            raise NeuroexplainError(
                f"--candidates and --revise go with the explainers {names}, not with {self.explainer}."
            )

    @property
    def asks_llm(self) -> bool:
        """Whether the explainer asks an LLM."""
        from neuroexplain.explaining.explainers import EXPLAINERS

        return EXPLAINERS[self.explainer].prompt is not None


def _check_range(option: str, value: float, is_inside: bool, bounds: str) -> None:
    """Raise NeuroexplainError unless the value is inside its bounds. NaN is outside of all bounds."""
    if not is_inside:
        text = str(value).removesuffix(".0")
        raise NeuroexplainError(f"{option} {text} is out of range: {bounds}")
