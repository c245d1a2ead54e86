"""Figures come out as SVG and PNG, whatever their labels say."""

import subprocess
import sys

import pytest

from neuroexplain import plots


@pytest.mark.parametrize("draw", [plots.scores_by_layer, plots.score_distribution])
def test_a_figure_is_written_twice_with_hostile_labels(draw, tmp_path):
    scores = [
        (0, "pairs$\\frac{", "digits<script>", 0.5),
        (1, "tokens", "lexical", -0.1),
        (1, "tokens", "lexical", 0.3),
    ]
    svg, png = plots.save_figure(lambda axes: draw(axes, scores), tmp_path / "out")
    assert png.read_bytes().startswith(b"\x89PNG")
    assert "<script>" not in svg.read_text()


def test_scores_over_controls_count_what_is_above_the_line():
    from matplotlib.figure import Figure

    axes = Figure().subplots()
    pairs = {"a$\\frac{": [(0.5, 0.1), (0.2, 0.2), (-0.3, 0.4)], "none": []}
    plots.scores_over_controls(axes, pairs)
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == ["a$\\frac{: 1 of 3 above the line", "none: 0 of 0 above the line"]
    assert axes.lines[1].get_xydata().tolist() == [[0.1, 0.5], [0.2, 0.2], [0.4, -0.3]]


def test_plot_names_what_it_wrote_and_refuses_what_it_cannot_draw(hostile):
    def plot(*words):
        command = [sys.executable, "-m", "neuroexplain.cli.main", "plot", *words, "--db", "x.db"]
        return subprocess.run(command, cwd=hostile, capture_output=True, text=True, check=False)

    assert plot("0:1").returncode == 0
    assert (hostile / "0-1.svg").exists()
    wrong = plot("colours")
    assert (wrong.returncode, "none of layers" in wrong.stderr) == (2, True)
    above = plot("above", "--layer", "1")
    assert (above.returncode, "10 of 10 units have a score" in above.stderr) == (0, True)
    assert (hostile / "above.png").exists()
    for words in (
        ["layers", "--runs", "1,2"],
        ["above", "--run", "1", "--runs", "1"],
        ["above", "--layer", "7"],
    ):
        assert plot(*words).returncode == 2
