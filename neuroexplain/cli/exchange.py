"""`neuroexplain import` and `neuroexplain export`."""

from pathlib import Path
from typing import Annotated

import typer

from neuroexplain.cli.app import app
from neuroexplain.cli.options import DEFAULT_DB, Db, OldUnits, RunId, TrustRemoteCode, Units, renamed_option
from neuroexplain.cli.progress import draw, say
from neuroexplain.cli.select_units import select_layers, select_units
from neuroexplain.errors import NeuroexplainError


@app.command(
    "import",
    epilog="Example:  neuroexplain import llama3-neurons ./data --layers 15 --tokenizer ./Meta-Llama-3-8B",
)
def import_(
    file_format: Annotated[
        str,
        typer.Argument(
            metavar="FORMAT",
            help="llama3-neurons (index.npy, act.npy, token.npy) or parquet (our own export).",
        ),
    ],
    source: Annotated[Path, typer.Argument(metavar="IN", help="Folder with the data.")],
    db: Db = DEFAULT_DB,
    layers: Annotated[
        str | None, typer.Option("--layers", "--layer", help="Only these layers (llama3-neurons).")
    ] = None,
    tokenizer: Annotated[
        str, typer.Option(help="The subject's tokenizer (llama3-neurons): hub name or folder.")
    ] = "meta-llama/Meta-Llama-3-8B",
    activation: Annotated[
        str, typer.Option(help="What the arrays hold: act or post (llama3-neurons).")
    ] = "act",
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Read published data, to explain it without collecting; or read a run that was exported."""
    from neuroexplain.formats.base import FORMATS, ReadOptions, read_formats
    from neuroexplain.selection import parse_layers
    from neuroexplain.store.engine import open_store, remove_if_unused
    from neuroexplain.store.runs import load_run

    reader = FORMATS.find(file_format)
    if reader is None or not reader.is_read:
        raise NeuroexplainError(
            f"The format {file_format!r} is not known; there is {', '.join(read_formats())}."
        )
    options = ReadOptions(
        parse_layers(layers) if layers is not None else None, tokenizer, activation, trust_remote_code
    )
    if not source.is_dir():
        raise NeuroexplainError(f"There is no folder {source}. Give the one that holds the data.")
    with open_store(db, create=True) as store:
        try:
            draw(reader.read(store, source, options))
        except NeuroexplainError:
            remove_if_unused(store)
            raise
        run = load_run(store)
    say(
        f"Run {run.id} in {db}: {len(run.layers)} layers.\n"
        f"Next:  neuroexplain explain --db {db} --layer {run.layers[0]}"
    )


@app.command(epilog="Example:  neuroexplain export parquet ./out --db demo.db")
def export(
    context: typer.Context,
    file_format: Annotated[
        str,
        typer.Argument(
            metavar="FORMAT",
            help="site (the viewer as static files), parquet (a Hugging Face data set), jsonl, neuronpedia "
            "or llama3-neurons.",
        ),
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to write, which must not exist yet.")],
    db: Db = DEFAULT_DB,
    layers: Annotated[
        str | None, typer.Option("--layers", "--layer", help="Only these layers (site, jsonl, neuronpedia).")
    ] = None,
    units: Units = None,
    neurons: OldUnits = None,
    every: Annotated[
        bool, typer.Option("--every", help="Units without an explanation too (site, jsonl, neuronpedia).")
    ] = False,
    run_id: RunId = None,
) -> None:
    """Write a run for others to read.

    parquet holds the whole run, llama3-neurons all top records, the other formats the units that are
    explained.
    """
    from neuroexplain.formats.base import FORMATS, written_formats
    from neuroexplain.store.engine import open_store
    from neuroexplain.store.runs import load_run
    from neuroexplain.store.units import list_explained_ids, list_unit_ids

    writer = FORMATS.find(file_format)
    if writer is None or not writer.is_written:
        raise NeuroexplainError(
            f"The format {file_format!r} is not known; there is {', '.join(written_formats())}."
        )
    with open_store(db, read_only=True) as store:
        run = load_run(store, run_id)
        selection = renamed_option(context, "units", "neurons")
        if writer.holds_whole_runs and (layers is not None or selection is not None):
            raise NeuroexplainError(
                f"{file_format} holds all units of a run; leave out --layers and --units."
            )
        layer_numbers = None if layers is None else select_layers(run, layers)
        selected = None if selection is None else set(select_units(store, run, layers, selection))
        unit_ids = []
        if not writer.holds_whole_runs:
            list_ids = list_unit_ids if every else list_explained_ids
            candidates = list_ids(store, run.id, layer_numbers)
            unit_ids = [unit for unit in candidates if selected is None or unit in selected]
            if not unit_ids:
                raise NeuroexplainError(
                    "None of these units is explained yet. To export them all the same:  --every"
                )
        draw(writer.write(store, run, unit_ids, out))
    say(f"Wrote {out}.")
