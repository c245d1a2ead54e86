"""Rewrite the files that tests compare with; review reads the diff. Now: db/schema.sql."""

import sqlite3
import tempfile
from pathlib import Path

from neuroexplain.store.engine import open_store

with tempfile.TemporaryDirectory() as folder:
    file = str(Path(folder) / "new.db")
    open_store(file, create=True).close()
    rows = sqlite3.connect(file).execute(
        "SELECT sql FROM sqlite_master WHERE sql IS NOT NULL AND name NOT LIKE 'explanations_fts_%' "
        "OR type = 'trigger' ORDER BY name"
    )
    (Path(__file__).parent.parent / "db" / "schema.sql").write_text("".join(f"{sql};\n" for (sql,) in rows))
