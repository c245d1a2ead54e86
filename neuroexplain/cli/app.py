"""The typer application. Each command has a file of its own, which registers itself here."""

from typing import Any

import typer
from typer.core import TyperGroup


class ReaderLeft(BaseException):
    """Nobody reads standard output any more, as in `neuroexplain query | head`. typer would exit with 1."""


class Commands(TyperGroup):
    """The commands; a reader that leaves early is no failure of them."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError as error:
            raise ReaderLeft from error


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Find out what the neurons of a language model do.\n\nBegin with:  neuroexplain demo",
)
