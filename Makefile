# make demo: trains a small GPT on your Python's standard library. make test: the tests. Both work on a bare machine
# with python3 >= 3.11 and make: they create .venv and install what they need.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
DEV_INSTALLED := $(VENV)/.dev-installed

.PHONY: demo test lint soak bench clean

demo: $(INSTALLED)
	$(BIN)/anyformer demo

# two processes: the tests use one thread each
test: $(DEV_INSTALLED)
	$(BIN)/python -m pytest -n 2 --dist worksteal

lint: $(DEV_INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy

# long runs: fresh environments, the light core alone, the published loss on Shakespeare, faults by the hundred
soak: $(DEV_INSTALLED)
	$(BIN)/python -m pytest -m soak --timeout 0

# prints the tables of benchmarks/results, a few minutes each; shakespeare.py takes longer and wants its text
bench: $(DEV_INSTALLED)
	$(BIN)/python benchmarks/train_loop.py
	$(BIN)/python benchmarks/zoo.py
	$(BIN)/python benchmarks/plan_mutations.py
	$(BIN)/python benchmarks/executor.py
	$(BIN)/python benchmarks/gist_faults.py
	$(BIN)/python benchmarks/tokenizer_sizes.py
	$(BIN)/python benchmarks/token_cache.py speed
	$(BIN)/python benchmarks/token_cache.py memory
	$(BIN)/python benchmarks/padding.py
	$(BIN)/python benchmarks/save_stall.py
	$(BIN)/python benchmarks/mutants/run.py

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "anyformer needs Python 3.11 or newer; set PYTHON=")'
	$(PYTHON) -m venv $(VENV)

# torch first: later packages then find it there instead of asking for another build
$(INSTALLED): pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e .
	touch $@

$(DEV_INSTALLED): $(INSTALLED)
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache
