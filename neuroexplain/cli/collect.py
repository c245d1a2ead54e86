"""`neuroexplain collect`."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from neuroexplain.cli.app import app
from neuroexplain.cli.options import CORPUS, DEFAULT_DB, RECORDS, RUNNING, Db, TrustRemoteCode
from neuroexplain.cli.progress import draw, say
from neuroexplain.errors import NeuroexplainError

if TYPE_CHECKING:
    from neuroexplain.config import CollectConfig

UNITS = "Units"
LATENTS = "Latents of SAEs and transcoders"
CHOICES = {
    "--sign": ("positive", "negative", "both"),
    "--sampling": ("random", "sequential"),
    "--dtype": ("auto", "float32", "bfloat16", "float16"),
    "--windows": ("device", "host"),
}

Model = Annotated[str, typer.Option(help="The subject: hub name, folder or .gguf file.")]
Revision = Annotated[str | None, typer.Option(help="Revision of a hub model.")]
Dataset = Annotated[
    list[str],
    typer.Option(
        help="Text: files (.txt, .jsonl, .csv, .parquet and more, also compressed), a glob, a folder or a "
        "hub data set; may be repeated.",
        rich_help_panel=CORPUS,
    ),
]
DatasetConfig = Annotated[
    str | None, typer.Option(help="Configuration of a hub data set.", rich_help_panel=CORPUS)
]
DatasetSplit = Annotated[str, typer.Option(help="Split of a hub data set.", rich_help_panel=CORPUS)]
TextColumn = Annotated[
    str, typer.Option(help="Column that holds the text, also nested: data.text.", rich_help_panel=CORPUS)
]
Segments = Annotated[
    int | None,
    typer.Option(help="Segments of 128 tokens to read; by default all.", rich_help_panel=CORPUS),
]
Sampling = Annotated[
    str, typer.Option(help="Order of the segments: random or sequential.", rich_help_panel=CORPUS)
]
LayerNumbers = Annotated[
    str | None, typer.Option(help="Layers, like 0-31 or 3,5; by default all.", rich_help_panel=UNITS)
]
SourceKind = Annotated[
    str,
    typer.Option(
        help="The units: mlp (neurons), heads (dimensions of attention heads), residual (dimensions of the "
        "residual stream), sae or transcoder (latents of a --dictionary).",
        rich_help_panel=UNITS,
    ),
]
Dictionary = Annotated[
    str | None,
    typer.Option(
        help="What encodes latents: the folder of a dictionary or of several, a glob, or a hub name; of each "
        "layer one.",
        rich_help_panel=LATENTS,
    ),
]
Site = Annotated[
    str | None,
    typer.Option(
        help="What the dictionary reads, if its folder does not tell: a hook, like "
        "blocks.12.hook_resid_post, or hook_resid_post of each layer.",
        rich_help_panel=LATENTS,
    ),
]
InputScale = Annotated[
    float | None,
    typer.Option(
        help="Factor on what the dictionary reads, if it was trained with one that its folder does not tell.",
        rich_help_panel=LATENTS,
    ),
]
SubtractBDec = Annotated[
    bool | None,
    typer.Option(
        help="Whether the decoder's bias is subtracted before encoding; by default the rule of the format.",
        rich_help_panel=LATENTS,
    ),
]
ForceModel = Annotated[
    bool,
    typer.Option(
        "--force-model",
        help="Take a dictionary that was made for a model of another name, like the one that was trained "
        "further.",
        rich_help_panel=LATENTS,
    ),
]
Activation = Annotated[
    str | None,
    typer.Option(
        help="What is read of a neuron: act (output of the activation function; the default) or post "
        "(input of the down-projection).",
        rich_help_panel=UNITS,
    ),
]
Sign = Annotated[
    str | None,
    typer.Option(
        help="Activations that count: positive (the default for neurons and latents), negative or both "
        "(the default for other units).",
        rich_help_panel=UNITS,
    ),
]
TopK = Annotated[int, typer.Option(help="Strongest records to keep of each unit.", rich_help_panel=RECORDS)]
RandomRecords = Annotated[
    int,
    typer.Option(help="Random records to keep, the same for every unit.", rich_help_panel=RECORDS),
]
SampledRecords = Annotated[
    int,
    typer.Option(
        help="Records to sample of each unit and side, for the score that is true of the whole corpus.",
        rich_help_panel=RECORDS,
    ),
]
BackgroundRecords = Annotated[
    int | None,
    typer.Option(
        help="Further random records to keep of latents, the same for all: they tell how often an "
        "explanation fires where a rare latent is silent.  [default: 1024]",
        rich_help_panel=RECORDS,
    ),
]
Positions = Annotated[
    str,
    typer.Option(
        help="Tokens of a segment that can be peaks; the second number is not included.",
        rich_help_panel=RECORDS,
    ),
]
SpecialPeaks = Annotated[
    bool, typer.Option(help="Whether special tokens can be peaks.", rich_help_panel=RECORDS)
]
Seed = Annotated[
    int, typer.Option(help="Seed of the segments' order, the splits and the draws.", rich_help_panel=RECORDS)
]
BatchSize = Annotated[
    str, typer.Option(help="Segments to read at once: a number, or auto.", rich_help_panel=RUNNING)
]
Device = Annotated[
    str,
    typer.Option(
        help="cpu, cuda or auto. Of several, each collects a part: cuda:0,cuda:1.", rich_help_panel=RUNNING
    ),
]
Dtype = Annotated[
    str,
    typer.Option(help="The model's precision: float32, bfloat16, float16 or auto.", rich_help_panel=RUNNING),
]
Shard = Annotated[
    str | None,
    typer.Option(help="Collect one part, like 2/8; neuroexplain merge joins parts.", rich_help_panel=RUNNING),
]
Windows = Annotated[
    str,
    typer.Option(
        help="Where records are kept while collecting: device, or host to spare a GPU's memory.",
        rich_help_panel=RUNNING,
    ),
]
Compile = Annotated[
    bool, typer.Option(help="Compile the model with torch.compile on a GPU.", rich_help_panel=RUNNING)
]
CheckpointEvery = Annotated[float, typer.Option(help="Seconds between checkpoints.", rich_help_panel=RUNNING)]
OnlyTokenize = Annotated[
    bool,
    typer.Option(
        "--only-tokenize",
        help="Tokenize the text into the folder of --db, for parts that are collected there, and end.",
        rich_help_panel=RUNNING,
    ),
]
KeepTokens = Annotated[
    bool,
    typer.Option(
        "--keep-tokens",
        help="Leave the tokens of the text in the folder of --db, where other parts read them.",
        rich_help_panel=RUNNING,
    ),
]


@app.command(
    epilog="Example:  neuroexplain collect --model ./llama --dataset 'texts/*.jsonl' --segments 4000"
)
def collect(
    model: Model,
    dataset: Dataset,
    db: Db = DEFAULT_DB,
    revision: Revision = None,
    dataset_config: DatasetConfig = None,
    split: DatasetSplit = "train",
    text_column: TextColumn = "text",
    segments: Segments = None,
    sampling: Sampling = "random",
    layers: LayerNumbers = None,
    source: SourceKind = "mlp",
    dictionary: Dictionary = None,
    site: Site = None,
    input_scale: InputScale = None,
    subtract_b_dec: SubtractBDec = None,
    force_model: ForceModel = False,
    activation: Activation = None,
    sign: Sign = None,
    top_k: TopK = 32,
    random_records: RandomRecords = 32,
    sampled_records: SampledRecords = 40,
    background_records: BackgroundRecords = None,
    positions: Positions = "64:97",
    special_peaks: SpecialPeaks = True,
    seed: Seed = 0,
    batch_size: BatchSize = "auto",
    device: Device = "auto",
    dtype: Dtype = "auto",
    shard: Shard = None,
    windows: Windows = "device",
    compile: Compile = True,
    checkpoint_every: CheckpointEvery = 300.0,
    only_tokenize: OnlyTokenize = False,
    keep_tokens: KeepTokens = False,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Read a corpus with a language model and keep each unit's strongest snippets."""
    options = dict(locals())
    del options["db"], options["only_tokenize"]
    config = collect_config(**options)
    if only_tokenize:
        _tokenize(db, config)
    else:
        _collect(db, config)


def collect_config(
    *,
    dataset: Sequence[str],
    layers: str | None,
    positions: str,
    batch_size: str,
    shard: str | None,
    **options: object,
) -> "CollectConfig":
    """The configuration of the command's options: what is text on the command line is parsed."""
    from neuroexplain.config import CollectConfig
    from neuroexplain.corpus.files import find_files
    from neuroexplain.selection import parse_layers, parse_positions, parse_shard

    for option, choices in CHOICES.items():
        value = options[option.removeprefix("--")]
        if value is not None and value not in choices:
            raise NeuroexplainError(f"{option} {value!r} is not one of {', '.join(choices)}.")
    if batch_size != "auto" and not batch_size.isdecimal():
        raise NeuroexplainError(f"--batch-size {batch_size!r} is neither a number nor auto.")
    config = CollectConfig(
        dataset=tuple(dataset),
        layers=None if layers is None else parse_layers(layers),
        positions=parse_positions(positions),
        batch_size=None if batch_size == "auto" else int(batch_size),
        shard=None if shard is None else parse_shard(shard),
        **options,  # type: ignore[arg-type]
    )
    find_files(config.dataset, config.split)  # before torch is imported: a missing file is found at once
    return config


def _tokenize(db: str, config: "CollectConfig") -> None:
    from neuroexplain.corpus.tokenizing import tokenize_beside

    folder = Path(db).parent
    draw(tokenize_beside(config, folder))
    say(f"The text is tokenized in {folder}.")


def _collect(db: str, config: "CollectConfig") -> None:
    """Collect unless the database holds the same run."""
    from neuroexplain.collecting.run import find_finished_run, run_collect
    from neuroexplain.store.engine import open_store, remove_if_unused
    from neuroexplain.store.runs import count_units, load_run
    from neuroexplain.store.writer_lock import writer_lock

    with open_store(db, create=True) as store, writer_lock(store, "collections", "collect"):
        finished = find_finished_run(store, config)
        if finished is not None:
            say(f"Nothing to do: run {finished.id} in {db} was collected with these options.")
            return
        try:
            if len(config.devices) > 1:
                from neuroexplain.collecting.devices import run_collect_on_devices

                draw(run_collect_on_devices(store, config), gently=True)
            else:
                draw(run_collect(store, config), gently=True)
        except NeuroexplainError:
            remove_if_unused(store)
            raise
        run = load_run(store)
        counts = count_units(store, run.id)
        say(
            f"Run {run.id} in {db}: {sum(counts.values()):,} {run.noun} of {len(run.layers)} layers "
            f"from {run.n_tokens:,} tokens, {counts.get('dead', 0):,} dead.\n"
            f"Next:  neuroexplain explain --db {db} --layer {run.layers[0]} --local MODEL"
        )
