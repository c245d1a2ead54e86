"""`neuroexplain import` and `neuroexplain export`."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from neuroexplain.cli.app import app
from neuroexplain.cli.options import DEFAULT_DB, Db, OldUnits, RunId, TrustRemoteCode, Units, renamed_option
from neuroexplain.cli.progress import draw, say
from neuroexplain.cli.select_units import select_layers, select_units
from neuroexplain.errors import NeuroexplainError

if TYPE_CHECKING:
    from neuroexplain.formats.base import Format
    from neuroexplain.hub import HubDataSet
    from neuroexplain.runs import Run
    from neuroexplain.store.engine import Store
    from neuroexplain.units import UnitId


Push = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Upload the folder to the Hugging Face hub as this data set, NAME or NAMESPACE/NAME (parquet). "
        "Log in with `hf auth login` or HF_TOKEN. run.json names the paths that `collect` was given.",
    ),
]
IsPrivate = Annotated[
    bool | None,
    typer.Option(
        "--private/--public",
        help="Who can read a new data set: you alone, the default here, or everybody.",
    ),
]
SourceSet = Annotated[
    str | None,
    typer.Option(
        "--source-set",
        help="Neuronpedia's name of the dictionary, without the layer, like gemmascope-res-16k "
        "(neuronpedia). By default that of Gemma Scope and Llama Scope, else one made of its folder's.",
    ),
]
License = Annotated[
    str | None,
    typer.Option(
        "--license",
        help="The data set's license in its card, like cc-by-4.0 (parquet); none unless told.",
    ),
]


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


@app.command(
    epilog="Example:  neuroexplain export parquet ./out --db demo.db --push jane/gpt2-neurons --license mit"
)
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
    push: Push = None,
    is_private: IsPrivate = None,
    license_id: License = None,
    source_set: SourceSet = None,
) -> None:
    """Write a run for others to read.

    parquet holds the whole run, llama3-neurons all top records, the other formats the units that are
    explained.

    With --push a parquet folder becomes a data set on the Hugging Face hub. An OUT that is an export of
    the run as it is now is uploaded as it is, so you can export first, and edit its card (README.md).
    """
    from neuroexplain.store.engine import open_store
    from neuroexplain.store.runs import load_run

    writer = _find_writer(file_format)
    if file_format != "parquet" and not (push is None and is_private is None and license_id is None):
        raise NeuroexplainError("--push, --private, --public and --license are for the format parquet.")
    _check_source_set(file_format, source_set)
    data_set = _open_data_set(push, is_private, license_id)
    with open_store(db, read_only=True) as store:
        run = load_run(store, run_id)
        selection = renamed_option(context, "units", "neurons")
        if writer.holds_whole_runs and (layers is not None or selection is not None):
            raise NeuroexplainError(f"{file_format} holds all units of a run; leave out --layers, --units.")
        unit_ids = [] if writer.holds_whole_runs else _units_to_export(store, run, layers, selection, every)
        if data_set is not None and out.exists():
            from neuroexplain.formats.parquet import check_is_export_of

            check_is_export_of(store, run, out)
        elif file_format == "neuronpedia":
            _export_to_neuronpedia(store, run, unit_ids, out, source_set)
        else:
            draw(writer.write(store, run, unit_ids, out))
            say(f"Wrote {out}.")
    if data_set is not None or license_id is not None:
        _share(data_set, out, license_id)


def _check_source_set(file_format: str, name: str | None) -> None:
    """Raise NeuroexplainError unless the name, if any, can be that of a source set, without a layer."""
    if name is None:
        return
    if file_format != "neuronpedia":
        raise NeuroexplainError("--source-set is for the format neuronpedia.")
    if re.fullmatch(r"(?!\d+-)[a-z0-9][a-z0-9._-]{0,99}", name, re.ASCII) is None:
        raise NeuroexplainError(
            f"--source-set {name!r} is no name of a source set. Write it in small letters, digits and "
            "dashes, without the layer that stands before it:  --source-set gemmascope-res-16k"
        )


def _export_to_neuronpedia(
    store: "Store", run: "Run", unit_ids: "list[UnitId]", out: Path, source_set: str | None
) -> None:
    """Export, and tell by which name; a dictionary that Neuronpedia may have under another one is told."""
    from neuroexplain.formats.neuronpedia import export_neuronpedia, find_set_name, source_id
    from neuroexplain.formatting import printable

    draw(export_neuronpedia(store, run, unit_ids, out, source_set))
    names = [source_id(run, layer, source_set) for layer in sorted({unit.layer for unit in unit_ids})]
    say(f"Wrote {out}, as {names[0]}" + (f" to {names[-1]}." if len(names) > 1 else "."))
    source = run.source(unit_ids[0].layer)
    if source_set is None and source is not None and source.dictionary and find_set_name(source) is None:
        say(
            f"Whether Neuronpedia has {printable(source.dictionary)} under another name is not known here. "
            "Name it:  --source-set NAME"
        )


def _find_writer(name: str) -> "Format":
    """The format of this name. Raises NeuroexplainError for one that is not known or only read."""
    from neuroexplain.formats.base import FORMATS, written_formats

    writer = FORMATS.find(name)
    if writer is None or not writer.is_written:
        raise NeuroexplainError(f"The format {name!r} is not known; there is {', '.join(written_formats())}.")
    return writer


def _units_to_export(
    store: "Store", run: "Run", layers: str | None, selection: str | None, every: bool
) -> "list[UnitId]":
    """The selected units that are explained, or with `every` all selected ones."""
    from neuroexplain.store.units import list_explained_ids, list_unit_ids

    list_ids = list_unit_ids if every else list_explained_ids
    candidates = list_ids(store, run.id, None if layers is None else select_layers(run, layers))
    selected = None if selection is None else set(select_units(store, run, layers, selection))
    unit_ids = [unit for unit in candidates if selected is None or unit in selected]
    if not unit_ids:
        raise NeuroexplainError("None of these units is explained yet. To export them all the same:  --every")
    return unit_ids


def _open_data_set(name: str | None, is_private: bool | None, license_id: str | None) -> "HubDataSet | None":
    """Where to upload, before anything is written; None if nothing is to be uploaded."""
    if license_id is not None:
        from neuroexplain.formats._parquet_card import check_license

        check_license(license_id)
    if name is None:
        if is_private is not None:
            raise NeuroexplainError("--private and --public are for what --push uploads. Give --push, too.")
        return None
    from neuroexplain.hub import open_data_set

    return open_data_set(name, is_private)


def _share(data_set: "HubDataSet | None", out: Path, license_id: str | None) -> None:
    """Write the license into the card, and upload the folder if that is wanted."""
    from neuroexplain.formats.parquet import set_license

    if license_id is not None:
        set_license(out, license_id)
    if data_set is not None:
        _upload(data_set, out)


def _upload(data_set: "HubDataSet", folder: Path) -> None:
    from neuroexplain.formats.parquet import files_to_share

    draw(data_set.upload(files_to_share(folder, data_set.name)))
    readers = "You, or your organization, alone" if data_set.is_private else "Everybody"
    say(
        f"Uploaded {folder} to {data_set.address}. {readers} can read it; its settings change that.\n"
        f'Read it:  datasets.load_dataset("{data_set.name}", "explanations")'
    )
