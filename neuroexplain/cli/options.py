"""Options that several commands share, the groups in which help lists them, and options that were renamed.

The annotations are real types, not strings: typer would compile each string at every start.
"""

from typing import Annotated, Any

import typer

from neuroexplain.errors import NeuroexplainError

DEFAULT_DB = "neuroexplain.db"

# Groups of options in the help of `collect`, `explain` and `score`.
CORPUS, RECORDS, RUNNING = "Text", "Records", "Running"
EXPLAINER, LLM, SCORES = "Explanations", "The LLM that explains", "Scores"

Db = Annotated[
    str, typer.Option("--db", envvar="NEUROEXPLAIN_DB", help="Database: a file or an SQLAlchemy URL.")
]
RunId = Annotated[
    int | None, typer.Option("--run", help="The run to use; by default the latest finished run.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else, on standard output.")]
Layers = Annotated[str | None, typer.Option("--layer", "--layers", help="Layers, like 15 or 3-5.")]
Units = Annotated[
    str | None,
    typer.Option("--units", help="Units, like 15:0-99,20:7; dimensions of heads like 15:3.40 too."),
]
OldUnits = Annotated[str | None, typer.Option("--neurons", help="The old name of --units.")]

Embedding = Annotated[
    str,
    typer.Option(
        help="What finds explanations by meaning: wordllama, a model of sentence-transformers, or the URL of "
        "a server with /v1/embeddings (URL#MODEL if it has several)."
    ),
]
ScoringEmbedding = Annotated[
    str,
    typer.Option(
        "--embedding",
        help="Whose vectors --scorer embedding compares: wordllama, a model of sentence-transformers, or the "
        "URL of a server with /v1/embeddings.",
        rich_help_panel=SCORES,
    ),
]

TrustRemoteCode = Annotated[
    bool,
    typer.Option("--trust-remote-code", help="Run code that comes with a model. Read it first."),
]

Server = Annotated[
    str | None,
    typer.Option(
        "--server",
        help="URL of a vLLM (OpenAI-compatible) server; of several that serve the same, URL,URL,...",
        rich_help_panel=LLM,
    ),
]
Servers = Annotated[
    str | None,
    typer.Option(
        "--servers",
        metavar="FILE",
        help="File with a URL a line, read again when it changes: servers may join and leave.",
        rich_help_panel=LLM,
    ),
]
Vllm = Annotated[
    str | None, typer.Option("--vllm", help="Start vLLM with this model for this run.", rich_help_panel=LLM)
]
VllmArgs = Annotated[
    str,
    typer.Option(
        "--vllm-args", help="More options for vLLM's command line, in one string.", rich_help_panel=LLM
    ),
]
Local = Annotated[
    str | None,
    typer.Option(
        "--local", help="Model for this process: hub name, folder or .gguf file.", rich_help_panel=LLM
    ),
]
ModelName = Annotated[
    str | None,
    typer.Option("--model", help="The server's model to use, if it has several.", rich_help_panel=LLM),
]
ServedTokenizer = Annotated[
    str | None,
    typer.Option(
        "--tokenizer",
        help="Tokenizer of the server's model (hub name or folder), if it is not found by the model's name.",
        rich_help_panel=LLM,
    ),
]
SimulatorTokenizer = Annotated[
    str | None,
    typer.Option(
        "--simulator-tokenizer", help="Tokenizer of the scorer's server's model.", rich_help_panel=SCORES
    ),
]
MaxWait = Annotated[
    float,
    typer.Option(
        "--max-wait",
        help="Seconds to wait for a server that does not answer, before giving up.",
        rich_help_panel=RUNNING,
    ),
]
InFlight = Annotated[
    int,
    typer.Option(
        "--in-flight", help="Most requests that each server gets at the same time.", rich_help_panel=RUNNING
    ),
]
RetryFailed = Annotated[
    bool,
    typer.Option(
        "--retry-failed", help="Repeat requests whose answer could not be used.", rich_help_panel=RUNNING
    ),
]

ScorerNames = Annotated[
    str | None,
    typer.Option(
        "--scorer",
        help="One or more scorers, as combined,detection. Simulators predict each token: combined (the next "
        "two in one; the default by a server), lexical (how likely a word is after the explanation; the "
        "default by --local), words (a question a word), digits (each token in its context, after Bills et "
        "al. 2023); `neuroexplain check` measures them. Judges say yes or no to windows of 32 tokens, after "
        "Paulo et al. (2024): detection (does the unit fire in the window?), fuzzing (does it fire at the "
        "marked tokens?). intruder reads no explanation: does a judge find the odd one of five windows? "
        "embedding asks no LLM: how similar is a window to the explanation by their vectors? Scores of "
        "windows hardly fall where an explanation is too broad, those of fuzzing not at all: docs/scores.md. "
        "The first scorer chooses among candidates.",
        rich_help_panel=SCORES,
    ),
]
OldScorerNames = Annotated[
    str | None, typer.Option("--simulator", help="The old name of --scorer.", rich_help_panel=SCORES)
]
ScoreRecords = Annotated[
    int | None,
    typer.Option(
        help="Sampled records to score on, and as many random ones. By default 16 for a scorer that asks "
        "nothing (lexical, embedding) or one question a record (detection, fuzzing), else 8.",
        rich_help_panel=SCORES,
    ),
]
WithBills = Annotated[
    bool | None,
    typer.Option(
        "--bills/--no-bills",
        help="Also score on top and random records as Bills et al. do (lexical always does). It overstates, "
        "and hardly falls where an explanation is too broad: docs/scores.md.",
        rich_help_panel=SCORES,
    ),
]
WithControl = Annotated[
    bool,
    typer.Option(
        "--control",
        help="Score another unit's explanation on the same records too (lexical and embedding always do).",
        rich_help_panel=SCORES,
    ),
]
OldWithControl = Annotated[
    bool, typer.Option("--null", help="The old name of --control.", rich_help_panel=SCORES)
]
SimulatorServer = Annotated[
    str | None,
    typer.Option(
        "--simulator-server", help="The scorer's server, if it has its own.", rich_help_panel=SCORES
    ),
]
SimulatorLocal = Annotated[
    str | None,
    typer.Option("--simulator-local", help="The scorer's model for this process.", rich_help_panel=SCORES),
]
SimulatorModel = Annotated[
    str | None,
    typer.Option(
        "--simulator-model", help="The scorer's server's model, if it has several.", rich_help_panel=SCORES
    ),
]


def renamed_option(context: typer.Context, name: str, old_name: str) -> Any:
    """The value of an option that can be given under its old name too. A flag wins over neuroexplain.toml.

    Raises NeuroexplainError where both names are given in the same place.
    """
    values: dict[str, tuple[Any, bool]] = {}  # by name: the value, and whether it was typed
    for option in (name, old_name):
        source = getattr(context.get_parameter_source(option), "name", "")
        if source in ("COMMANDLINE", "DEFAULT_MAP") and context.params[option] is not None:
            values[option] = context.params[option], source == "COMMANDLINE"
    if len(values) == 2 and len({is_typed for _, is_typed in values.values()}) == 1:
        raise NeuroexplainError(
            f"--{old_name} is the old name of --{name}, and both are given. Give --{name} alone."
        )
    preferred = [value for value, is_typed in values.values() if is_typed or len(values) == 1]
    return next(iter(preferred), context.params[name])


def scorer_names(context: typer.Context) -> tuple[str, ...]:
    """The scorers that --scorer names. By default `combined` by a server, `lexical` by a local model.

    In this process a question a word takes a minute a unit, and a model of 135M answers by chance.
    """
    text = renamed_option(context, "scorer", "simulator")
    options = context.params
    is_local = options["simulator_local"] or (options["local"] and not options["simulator_server"])
    default = ("lexical",) if is_local else ("combined",)
    return default if text is None else tuple(name.strip() for name in text.split(",") if name.strip())
