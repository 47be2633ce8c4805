# `make demo` and `make test` set up everything they need; the rest is for people who work on it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
SOURCES := common client server simulations tests

.PHONY: demo test check format clean
.DEFAULT_GOAL := demo

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "veilface needs Python 3.11 or newer")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

demo: $(STAMP)  ## A private run of sixty small sites with a camera that the public bank never saw.
	$(BIN)/veilface simulate --data synthetic --shift cctv --bank-shift none --sites 60 \
	    --persons 300 --trust secagg --epsilon 4 --delta 1e-4 --seed 0

test: $(STAMP)  ## All tests.
	$(BIN)/python -m pytest -n 2 --dist loadfile

check: $(STAMP)  ## Format, lint, types, import rules.
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/ruff check --no-cache $(SOURCES)
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(STAMP)  ## Format and fix what can be fixed.
	$(BIN)/ruff format $(SOURCES)
	$(BIN)/ruff check --fix $(SOURCES)

clean:  ## Remove the environment and caches, never runs.
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache *.egg-info
