"""The demo's picture: what the terminal shows of the best explanations, and scores beside controls."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.style import Style

from neuroexplain import plots
from neuroexplain.cli.unit_text import best_lines
from neuroexplain.formatting import headline_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from rich.text import Text

    from neuroexplain.demo.run import Highlights

COLUMNS = 92  # of text
TEXT_INCHES, CHART_INCHES, HEIGHT_INCHES = 9.0, 4.8, 4.6
LINE_INCHES = 0.3
WIDTH_OF_HEIGHT = 0.602  # of a character of the monospaced font


def save_demo_picture(highlights: Highlights, file: Path) -> None:
    """Write the picture as a PNG file. Raises OSError if it cannot be written."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    width = TEXT_INCHES + CHART_INCHES
    # Dark like a terminal, whose colours get darker as activations get weaker.
    with plt.style.context(["dark_background", {"text.parse_math": False}]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # a corpus may hold what the font lacks
        figure = plt.figure(figsize=(width, HEIGHT_INCHES))
        text_axes = figure.add_axes((0, 0, TEXT_INCHES / width, 1))
        _draw_lines(text_axes, best_lines(highlights, COLUMNS - 2))
        axes = figure.add_axes(((TEXT_INCHES + 0.8) / width, 0.24, (CHART_INCHES - 1.1) / width, 0.66))
        pairs = {name: comparison.pairs for name, comparison in highlights.controls}
        name = headline_name(highlights.best[0][1].run.headline) if highlights.best else "score"
        plots.scores_over_controls(axes, pairs, name)
        axes.grid(alpha=0.25)
        figure.savefig(file, dpi=120)
        plt.close(figure)


def _draw_lines(axes: Axes, lines: list[Text]) -> None:
    """Lines of the terminal, with their colours; what does not fit is cut."""
    from matplotlib.patches import Rectangle

    size = 72 * TEXT_INCHES / COLUMNS / WIDTH_OF_HEIGHT  # points
    place: dict[str, Any] = {"va": "center", "family": "monospace", "fontsize": size}
    axes.set(xlim=(0, COLUMNS), ylim=(HEIGHT_INCHES / LINE_INCHES, 0))
    axes.axis("off")
    terminal = Console(width=COLUMNS)
    for row, line in enumerate(lines, 1):
        line.truncate(COLUMNS - 2, overflow="ellipsis")
        column = 1
        for segment in line.render(terminal):
            style, width = segment.style or Style(), segment.cell_length
            colour = "white" if style.bgcolor is not None or style.color is None else "cyan"
            if style.bgcolor is not None:
                background = style.bgcolor.get_truecolor().hex
                axes.add_patch(Rectangle((column, row - 0.5), width, 0.9, color=background))
            weight = "bold" if style.bold else "normal"
            axes.text(column, row, segment.text, color=colour, weight=weight, **place)
            column += width
