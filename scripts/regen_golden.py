"""Rewrite the files that tests compare with; review reads the diff: db/schema.sql, filled prompts and every
command's help.
"""

from pathlib import Path

from tests.golden_files import golden_files

for path, text in golden_files().items():
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    print(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)
