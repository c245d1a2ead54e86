"""`neuroexplain demo`."""

from pathlib import Path
from typing import Annotated

import typer

from neuroexplain.cli.app import app
from neuroexplain.cli.engine_options import default_engine, named_engine
from neuroexplain.cli.output import stdout_console
from neuroexplain.cli.progress import draw
from neuroexplain.errors import NeuroexplainError


@app.command(epilog="Example:  neuroexplain demo --out /tmp   |   neuroexplain demo --model ./model")
def demo(
    out: Annotated[
        Path, typer.Option(help="Folder to write demo.db and demo.png to; created if missing.")
    ] = Path(),
    model: Annotated[
        str | None,
        typer.Option(help="Model to read, in place of SmolLM2-135M: hub name, folder or .gguf file."),
    ] = None,
    local: Annotated[
        str | None,
        typer.Option("--local", help="Model for this process that explains, in place of that one."),
    ] = None,
    server: Annotated[
        str | None, typer.Option("--server", help="URL of a vLLM server that explains, in place of that one.")
    ] = None,
    server_model: Annotated[
        str | None, typer.Option(help="The server's model to use, if it has several.")
    ] = None,
    segments: Annotated[int, typer.Option(hidden=True)] = 0,
) -> None:
    """Collect, explain and score a small real model on real text, without a GPU, in some minutes.

    The model, SmolLM2-135M, is fetched the first time (93 MB) unless it is here already.
    """
    from neuroexplain.cli.demo_picture import save_demo_picture
    from neuroexplain.cli.unit_text import demo_text
    from neuroexplain.demo.run import find_highlights, run_demo
    from neuroexplain.store.engine import open_store
    from neuroexplain.store.runs import load_run

    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise NeuroexplainError(f"Cannot make the folder {out}: {error.strerror}.") from error
    db = str(out / "demo.db")
    engine = named_engine(default_engine(), server=server, local=local, model=server_model)
    draw(run_demo(db, engine, segments, model), gently=True)
    with open_store(db, read_only=True) as store:
        highlights = find_highlights(store, load_run(store))
    picture = out / "demo.png"
    try:
        save_demo_picture(highlights, picture)
    except OSError as error:
        raise NeuroexplainError(f"Cannot write {picture}: {error.strerror}.") from error
    console = stdout_console()
    console.print(demo_text(highlights, db, str(picture), console.width))
