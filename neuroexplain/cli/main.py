"""The command line: flags -> configurations, errors -> exit codes. A command imports what it runs."""

from neuroexplain.runtime.tuning import tune_garbage_collector

tune_garbage_collector()  # before the imports below, which are many modules

# ruff: noqa: E402
import errno
import io
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from neuroexplain.cli.app import ReaderLeft, app
from neuroexplain.cli.progress import say
from neuroexplain.errors import EngineLost, NeuroexplainError
from neuroexplain.runtime.interrupt import Interrupted, stopping

# Help lists the commands in the order in which their files are imported.
# isort: off
from neuroexplain.cli import collect, explain, score, check  # noqa: F401
from neuroexplain.cli import query, show, serve, runs  # noqa: F401
from neuroexplain.cli import merge, launch, exchange, plot, verify, demo  # noqa: F401
# isort: on

DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)  # a disk that is full or read-only: not our bug


def _show_version(is_asked_for: bool) -> None:
    if is_asked_for:
        from neuroexplain import __version__

        print(f"neuroexplain {__version__}")
        raise typer.Exit


@app.callback()
def _every_command(
    version: Annotated[
        bool,
        typer.Option("--version", is_eager=True, callback=_show_version, help="Show the version and exit."),
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the typed command. Exit status: 2 for a mistake, 1 for a failure, 128 + signal if stopped."""
    stopping.install()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # characters that its encoding lacks
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")  # libraries' bars; ours are plain lines there
    stdout = os.fstat(sys.stdout.fileno())
    try:
        try:
            app(default_map=_defaults())
        finally:
            sys.stdout.flush()  # here, since nothing catches what goes wrong when Python ends
    except SystemExit as end:
        if end.code == 1 and _is_replaced(stdout):  # typer and rich end the printing of help so
            sys.exit(0)
        raise
    except NeuroexplainError as error:
        say(f"Error: {error}")
        sys.exit(1 if isinstance(error, EngineLost) else 2)
    except Interrupted:
        say(stopping.farewell)
        sys.exit(stopping.status)
    except (ReaderLeft, BrokenPipeError):
        _discard_stdout()
        sys.exit(0)
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            raise
        where = f" to {error.filename}" if error.filename else ""
        say(f"Error: Cannot write{where}: {error.strerror}. What was stored before is kept.")
        _discard_stdout()
        sys.exit(2)


def _is_replaced(stdout: os.stat_result) -> bool:
    """Whether typer or rich found that nobody reads standard output, and put something else in its place."""
    now = os.fstat(sys.stdout.fileno())
    return type(sys.stdout).__name__ == "PacifyFlushWrapper" or not os.path.samestat(now, stdout)


def _discard_stdout() -> None:
    """Let what is still to be written to standard output go nowhere, so that Python ends quietly."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _defaults() -> dict[str, object]:
    if not Path("neuroexplain.toml").is_file():  # without it, its reader is not imported
        return {}
    from neuroexplain.cli.defaults import read_defaults

    return read_defaults(app)


if __name__ == "__main__":
    main()
