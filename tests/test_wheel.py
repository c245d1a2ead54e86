"""The wheel alone, without the checkout, has the prompts, the migrations and the known neurons."""

import site
import subprocess
import sys
from pathlib import Path

CHECKOUT = Path(__file__).parent.parent


def test_an_installed_wheel_makes_a_database_and_finds_its_prompts(tmp_path):
    def python(*words, executable=sys.executable, cwd=CHECKOUT):
        done = subprocess.run([executable, *words], cwd=cwd, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    python("-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path))
    wheel = next(tmp_path.glob("*.whl"))
    python("-m", "venv", str(tmp_path / "empty"))
    fresh = tmp_path / "empty" / "bin" / "python"
    python("-m", "pip", "install", "-q", "--no-deps", str(wheel), executable=fresh)
    packages = python("-c", "import site; print(site.getsitepackages()[0])", executable=fresh).strip()
    # The requirements come from the environment of the tests. A path in a .pth is not searched for further
    # .pth files, so the checkout's editable install stays out of sight.
    (Path(packages) / "requirements.pth").write_text(site.getsitepackages()[0] + "\n")
    code = """
import neuroexplain
from neuroexplain.explaining.explainers import EXPLAINERS
from neuroexplain.store.engine import open_store
open_store("new.db", create=True).close()
assert EXPLAINERS["excerpts"].load_prompt().text
from neuroexplain.web.row_view import EMPTY_SEARCH
from neuroexplain.web.templates import STATIC, render
from neuroexplain.web.urls import UrlBuilder
empty = dict(form=EMPTY_SEARCH, problem="", rows=[], scorers=[], headline="", sorts={})
empty |= dict(previous=None, next=None)
assert "search.html" in render("search.html", urls=UrlBuilder(is_site=True), content_policy="", **empty)
assert (STATIC / "vendor" / "chart.js" / "LICENSE.md").exists()
from neuroexplain.explaining.check import neurons_to_check
assert len(neurons_to_check(None)) == 67
from neuroexplain.llm.prompts import load_prompt
assert load_prompt("simulate/words").text
print(neuroexplain.__file__)
"""
    where = python("-c", code, executable=fresh, cwd=tmp_path).strip()
    assert where.startswith(str(tmp_path / "empty"))
    python("-m", "neuroexplain.cli.main", "runs", "--db", "new.db", executable=fresh, cwd=tmp_path)
