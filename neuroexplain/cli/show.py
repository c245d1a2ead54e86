"""`neuroexplain show`."""

import os
from typing import TYPE_CHECKING, Annotated

import typer

from neuroexplain.cli.app import app
from neuroexplain.cli.options import DEFAULT_DB, AsJson, Db, RunId, TrustRemoteCode
from neuroexplain.cli.output import print_json, print_table, stdout_console
from neuroexplain.errors import NeuroexplainError

if TYPE_CHECKING:
    from neuroexplain.runs import UnitPage


@app.command(
    epilog='Example:  neuroexplain show 15:16   |   neuroexplain show 15:16 --text "a river" --model ./llama'
)
def show(
    unit: Annotated[
        str,
        typer.Argument(
            help="LAYER:UNIT, both counted from 0, like 15:16; dimensions of heads like 15:3.40 too."
        ),
    ],
    db: Db = DEFAULT_DB,
    run_id: RunId = None,
    top: Annotated[int, typer.Option(min=1, help="Top records to show.")] = 8,
    text: Annotated[
        str | None, typer.Option(help="A text of yours: shows the unit's activation on each of its tokens.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="With --text: the subject that reads it; by default the run's own.")
    ] = None,
    trust_remote_code: TrustRemoteCode = False,
    as_json: AsJson = False,
) -> None:
    """Show one unit: explanations and scores, snippets, statistics, promoted tokens."""
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # numpy would start threads, which take time
    from neuroexplain.as_json import unit_json
    from neuroexplain.cli.unit_text import show_text
    from neuroexplain.lookup import load_page
    from neuroexplain.store.engine import open_store
    from neuroexplain.store.runs import load_run

    with open_store(db, read_only=True) as store:
        run = load_run(store, run_id)
        try:
            unit_id = run.find_unit(unit)
        except ValueError as error:
            raise NeuroexplainError(f"{str(error)[0].upper()}{str(error)[1:]}.") from error
        page = load_page(store, run, unit_id)
    if text is not None:
        _show_activations(page, text, model, trust_remote_code, as_json)
    elif as_json:
        print_json(unit_json(page))
    else:
        console = stdout_console()
        console.print(show_text(page, db, top=top, width=console.width))


def _show_activations(
    page: "UnitPage", text: str, model: str | None, trust_remote_code: bool, as_json: bool
) -> None:
    """Read a text with the subject and print the unit's activation on each token."""
    from neuroexplain.as_json import unit_id_json
    from neuroexplain.cli.unit_text import text_line
    from neuroexplain.probe import Probe

    unit_id = page.unit.id
    probe = Probe(model or page.run.subject, page.run.dtype, trust_remote_code=trust_remote_code)
    tokens, activations = probe.activations(text, page.run, unit_id)
    if as_json:
        print_json({**unit_id_json(unit_id), "tokens": tokens, "activations": activations})
    else:
        print_table(text_line(page, tokens, activations))
