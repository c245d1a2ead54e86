"""Standard output: tables, pages and JSON that no terminal misreads."""

import json
import re
import sys
from typing import TYPE_CHECKING, Any

from neuroexplain.cli.app import ReaderLeft

if TYPE_CHECKING:
    from rich.console import Console

# Characters that a terminal obeys or hides, and that JSON does not escape: controls from U+007F on, and marks
# of direction and of no width.
TERMINAL_CONTROLS = re.compile(r"[\x7f-\x9f\xad\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff]")


def stdout_console() -> "Console":
    """Standard output for rich, without markup: corpus text holds brackets."""
    from rich.console import Console

    class StdoutConsole(Console):
        def on_broken_pipe(self) -> None:
            raise ReaderLeft  # rich would exit with status 1

    return StdoutConsole(highlight=False, markup=False, soft_wrap=False)


def print_table(renderable: Any) -> None:
    """Print what rich can render."""
    stdout_console().print(renderable)


def print_json(value: Any) -> None:
    """Print a value as one line of JSON, harmless to terminals."""
    is_utf8 = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
    text = json.dumps(value, ensure_ascii=not is_utf8, allow_nan=False)
    sys.stdout.write(TERMINAL_CONTROLS.sub(lambda match: f"\\u{ord(match[0]):04x}", text) + "\n")
