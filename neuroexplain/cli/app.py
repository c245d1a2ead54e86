"""The typer application. Each command has a file of its own, which registers itself here."""

import typer

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Find out what the neurons of a language model do.\n\nBegin with:  neuroexplain demo",
)
