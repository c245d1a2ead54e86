"""`neuroexplain serve`."""

from typing import Annotated

import typer

from neuroexplain.cli.app import app
from neuroexplain.cli.options import DEFAULT_DB, Db, Embedding, TrustRemoteCode
from neuroexplain.cli.progress import say
from neuroexplain.embedding.base import DEFAULT_EMBEDDING
from neuroexplain.errors import NeuroexplainError


@app.command(epilog="Example:  neuroexplain serve --db demo.db, then open http://127.0.0.1:8080")
def serve(
    db: Db = DEFAULT_DB,
    host: Annotated[
        str, typer.Option(help="Address to listen on; other machines are let in only with a token.")
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes a free one.")
    ] = 8080,
    model: Annotated[
        str | None,
        typer.Option(help="The subject, to try texts of your own: hub name, folder or .gguf file."),
    ] = None,
    trust_remote_code: TrustRemoteCode = False,
    embedding: Embedding = DEFAULT_EMBEDDING,
    token: Annotated[
        str | None, typer.Option(envvar="NEUROEXPLAIN_TOKEN", help="Token that every request must carry.")
    ] = None,
) -> None:
    """Read units in the browser: pages, search and a JSON API. The database is never written to."""
    from neuroexplain.store.engine import open_store
    from neuroexplain.store.runs import load_run

    if host not in ("127.0.0.1", "localhost", "::1") and not token:
        raise NeuroexplainError(
            f"--host {host} lets other machines in, and no token is set. "
            "Set one:  NEUROEXPLAIN_TOKEN=$(openssl rand -hex 16)"
        )
    with open_store(db, read_only=True) as store:
        dtype = load_run(store).dtype
        from neuroexplain.config import find_api_key
        from neuroexplain.embedding.base import open_embedder
        from neuroexplain.probe import Probe
        from neuroexplain.web.app import make_app
        from neuroexplain.web.serving import listen, serve_until_stopped

        probe = None if model is None else Probe(model, dtype, trust_remote_code=trust_remote_code)
        api_key = find_api_key()
        viewer = make_app(
            store, probe=probe, token=token, open_embedder=lambda: open_embedder(embedding, api_key)
        )
        listening, address = listen(host, port)
        say(f"{db} is at {address}  (Ctrl-C ends it)")
        serve_until_stopped(viewer, listening)
