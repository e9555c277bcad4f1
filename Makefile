# `make test` and `make demo` set up everything on a machine that has Python 3.10 to 3.12, make and a compiler.

PYTHON ?= $(firstword $(foreach name,python3.11 python3.12 python3.10 python3,$(shell command -v $(name) 2>/dev/null)))
VENV ?= .venv
BIN := $(abspath $(VENV))/bin

.PHONY: help install test lint demo docs package clean

help:
	@echo "make demo     make toy clips, classify them and write a report, offline"
	@echo "make lint     check style, layers (import-linter) and types (basedpyright)"
	@echo "make test     make lint, then all tests"
	@echo "make docs     build the documentation site into site/"
	@echo "make package  build and check what is released, into dist/"
	@echo "make install  only set up $(VENV)"
	@echo "make clean    remove $(VENV) and what the demo made"

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "error: no Python found; install Python 3.11" >&2; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 13))' \
	  || { echo "error: $(PYTHON) is not Python 3.10 to 3.12; name one with: make PYTHON=/path/to/python3.11" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	@echo "Installing the pinned dependencies (about 6 GB, a few minutes) ..."
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	@touch $@

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache
	$(BIN)/basedpyright --project pyproject.toml --pythonpath $(BIN)/python

test: lint
	$(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder

demo: install
	@PATH="$(BIN):$$PATH" sh scripts/demo.sh

docs: install
	$(BIN)/mkdocs build --strict

package: install
	rm -rf dist
	$(BIN)/python -m build --no-isolation
	$(BIN)/twine check --strict dist/*
	$(BIN)/python -m pytest tests/test_package.py

clean:
	rm -rf $(VENV) demo site dist
