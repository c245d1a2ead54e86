"""What holds of the pages as they are written, and of the site that is made of them."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.pages import DOCS, ROOT, list_pages, read_blocks

README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = [block for page in list_pages() for block in read_blocks(page)]
LANGUAGES = {"sh", "console", "python", "toml", "text"}  # of these, a text is not run
LOADED = re.compile(
    r"""<(?:script|img|iframe|source)[^>]*\ssrc=["']?(?:https?:)?//|url\(["']?(?:https?:)?//"""
)
STYLES = re.compile(r"""<link[^>]*rel=["']?(?:stylesheet|preload|preconnect)[^>]*href=["']?(?:https?:)?//""")


def test_the_readme_is_short():
    lines = README.splitlines()
    assert len(lines) <= 80
    assert max(map(len, lines)) <= 110


def test_what_the_readme_links_to_is_there():
    links = re.findall(r"\]\((?!https?:)([^)#]+)", README)
    assert len(links) > 10
    assert [link for link in links if not (ROOT / link).is_file()] == []


def test_every_page_is_in_the_navigation():
    assert {page for page in list_pages() if page.parent == DOCS} == set(DOCS.glob("*.md"))


def test_at_most_ten_commands_are_not_run_and_each_has_its_reason():
    not_run = [command for block in BLOCKS if block.not_run is not None for command in block.commands]
    assert len(not_run) <= 10
    assert all(len(block.not_run.split()) >= 3 for block in BLOCKS if block.not_run is not None)


def test_no_command_hides_in_a_block_that_is_not_run():
    assert {block.language for block in BLOCKS} <= LANGUAGES
    texts = [block for block in BLOCKS if block.language == "text"]
    typed = re.compile(r"^\s*(\$ |neuroexplain |vllm |python |pip )", re.MULTILINE)
    assert [f"{block.page}:{block.line}" for block in texts if typed.search(block.text)] == []


def test_the_site_builds_and_loads_nothing_from_elsewhere(tmp_path):
    command = Path(sys.executable).with_name("zensical")
    if not command.exists():
        pytest.skip("zensical is not installed: make setup")
    for name in ("docs", "tests/golden/help"):
        shutil.copytree(ROOT / name, tmp_path / name)
    shutil.copy(ROOT / "zensical.toml", tmp_path)
    done = subprocess.run(
        [command, "build", "--strict"], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    built = list((tmp_path / "site").glob("*.html"))
    assert len(built) > len(list_pages()) - 1  # and 404.html
    for file in (*built, *(tmp_path / "site").rglob("*.css")):
        text = file.read_text(encoding="utf-8")
        assert not LOADED.search(text), file.name
        assert not STYLES.search(text), file.name
    assert "--checkpoint-every" in (tmp_path / "site" / "commands.html").read_text(encoding="utf-8")
