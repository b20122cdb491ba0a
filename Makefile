# make reproduce   environment, the default experiments, the claims table
# make test        environment, every test that this machine can run
# make lint        ruff, snakefmt, snakemake --lint
# make schemas     write the JSON schemas after a new key, method or solver
# make envs        write the conda environments after a change of requirements.lock or envs/generate.py
# make help        this list

PYTHON ?= python3
CORES ?= all
# Modules are compiled on first import (see below), which this variable would forbid.
unexport PYTHONDONTWRITEBYTECODE
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/installed-from-requirements.lock
TESTING := $(VENV)/installed-from-requirements-test.lock

.PHONY: help reproduce test lint schemas envs clean

help:
	@sed -n 's/^# make /make /p' Makefile

# --no-compile: modules are compiled when first imported, which is most of a minute less to wait for.
$(STAMP): requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or later is needed, this is " + sys.version.split()[0] if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --no-compile --requirement requirements.lock
	@cp requirements.lock $(STAMP)

$(TESTING): $(STAMP) requirements-test.lock
	$(BIN)/python -m pip install --quiet --no-compile --requirement requirements-test.lock
	@cp requirements-test.lock $(TESTING)

reproduce: $(STAMP)
	$(BIN)/snakemake --cores $(CORES)
	@$(BIN)/python workflow/scripts/summary.py

test: $(TESTING)
	$(BIN)/python -m pytest tests

lint: $(TESTING)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/snakefmt --check .
	$(BIN)/snakemake --lint

schemas: $(STAMP)
	cd workflow && ../$(BIN)/python -m consistency.config

envs: $(STAMP)
	$(BIN)/python envs/generate.py

clean:
	rm -rf $(VENV) .snakemake
