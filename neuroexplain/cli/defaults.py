"""neuroexplain.toml: defaults of options, one table a command."""

import tomllib
from pathlib import Path
from typing import Any

import typer

from neuroexplain.errors import NeuroexplainError

FILE = Path("neuroexplain.toml")  # in the working folder
OPTION_TYPES: dict[str, Any] = {
    "int": int,
    "float": float,
    "boolean": bool,
}  # by typer's names; others are texts
TYPE_NAMES = {int: "a whole number", float: "a number", bool: "true or false"}


def read_defaults(app: typer.Typer) -> dict[str, Any]:
    """The file's options by command and parameter, as click's `default_map`; empty without a file.

    Raises NeuroexplainError for an unknown command or option, and for a value of the wrong type.
    """
    if not FILE.is_file():
        return {}
    try:
        tables = tomllib.loads(FILE.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise NeuroexplainError(f"Cannot read {FILE}: {error}") from error
    commands = typer.main.get_group(app).commands
    defaults: dict[str, Any] = {}
    for name, table in tables.items():
        if name not in commands or not isinstance(table, dict):
            raise NeuroexplainError(
                f"{FILE} has {name!r}, which is no command; tables are {', '.join(sorted(commands))}."
            )
        options = {
            flag.lstrip("-"): option
            for option in commands[name].params
            for flag in option.opts
            if flag.startswith("--")
        }
        for key, value in table.items():
            option = options.get(key.replace("_", "-"))
            if option is None:
                raise NeuroexplainError(
                    f"{FILE}, [{name}]: there is no option {key!r}; there are {', '.join(sorted(options))}."
                )
            _check_type(name, key, value, option)
            defaults.setdefault(name, {})[option.name] = value
    return defaults


def _check_type(command: str, key: str, value: Any, option: Any) -> None:
    import msgspec

    kind = OPTION_TYPES.get(option.type.name.removesuffix(" range"), str | int)
    try:
        msgspec.convert(value, list[kind] if option.multiple else kind)  # type: ignore[valid-type]
    except msgspec.ValidationError as error:
        expected = TYPE_NAMES.get(kind, "a text")
        expected = f"a list, each item {expected}" if option.multiple else expected
        raise NeuroexplainError(f"{FILE}, [{command}]: {key} is {value!r}; it must be {expected}.") from error
