"""The golden files hold what the code makes; scripts/regen_golden.py rewrites them, and review reads the
diff.
"""

from pathlib import Path

import pytest

from tests.golden_files import GOLDEN, golden_files

FILES = golden_files()


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_golden_file_is_what_the_code_makes(path: Path):
    assert FILES[path] == path.read_text(encoding="utf-8")


def test_no_golden_file_is_left_over():
    assert {path for folder in ("prompts", "help") for path in (GOLDEN / folder).iterdir()} <= set(FILES)
