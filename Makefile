# make reproduce   environment, the default experiments, the claims table
# make resume      after a kill or a reboot: ends what was left running, then goes on
# make install     the environment alone
# make test        environment, the tests that this machine can run, but the long ones (TESTS=path: those of a path)
# make test ALL=1  and the long ones: clusters, conda, browser at a phone's width, faults and benchmarks at length
# make bench       what precomputed targets buy, and the overheads of every stage (nine minutes); results/benchmark.md
# make soak        kill -9, full disk, fuzz, and random changes at length; writes benchmarks/soak.md and changes.md
# make verify      compare the last run's results with the hashes that they carry (RESULTS=FOLDER: of others)
# make compare A=results B=other/results  which verdicts differ and why, which numbers moved; a page (OUT=compare.html)
# make try METHOD=cm  a method on small batches, in seconds, before anything is trained (EXPERIMENT=NAME)
# make lint        ruff, snakefmt, snakemake --lint
# make schemas     write the JSON schemas after a new key, method or solver
# make status      what is being trained and what is finished (WATCH=1: again every 5 seconds; RESULTS=FOLDER)
# make lock        write the hashes into the lock files after a change of their pins; needs uv
# make envs        write the conda environments after a change of a lock file or envs/generate.py
# make help        this list

PYTHON ?= python3
CORES ?= all
TESTS ?= tests
# Tests run in as many processes as there are cores, and one more where some of them mostly wait for a cluster.
WORKERS ?= $(shell cores=$$(getconf _NPROCESSORS_ONLN); echo $$(((cores < 8 ? cores : 8) + $(if $(ALL),1,0))))
# On a cluster: make reproduce PROFILE=slurm; more arguments of snakemake: ARGS="--config experiments=fashion"
HOW = $(if $(PROFILE),--workflow-profile $(PROFILE),--cores $(CORES)) $(ARGS)
# Modules are compiled on first import (see below), which this variable would forbid.
unexport PYTHONDONTWRITEBYTECODE
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/installed-from-requirements.lock
TESTING := $(VENV)/installed-from-requirements-test.lock
# Locks with hashes: of pip, of what the pipeline runs on, of the plug-ins for Kubernetes, of the tests.
HASHED := requirements-pip.lock requirements.lock requirements-kubernetes.lock requirements-test.lock
# A file whose hash is not in the lock ends the installation. The locks are complete: nothing is to be resolved.
# --no-compile: modules are compiled when first imported, which is most of a minute less to wait for.
INSTALL = $(BIN)/python -m pip install --quiet --no-compile
INSTALL_HASHED = $(INSTALL) --no-deps --require-hashes

.PHONY: help install reproduce resume test try bench soak verify compare lint schemas lock envs status clean

help:
	@sed -n 's/^# make /make /p' Makefile

# The pip of the lock is faster than the one that comes with Python 3.11 (user time 13 s for 28); where it cannot be had,
# that one does.
$(STAMP): requirements-pip.lock requirements.lock requirements-torch.lock
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or later is needed, this is " + sys.version.split()[0] if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	-$(INSTALL_HASHED) --requirement requirements-pip.lock
	$(INSTALL_HASHED) --requirement requirements.lock
	$(INSTALL) --requirement requirements-torch.lock
	$(BIN)/python -m pip check
	@cp requirements.lock $(STAMP)

$(TESTING): $(STAMP) requirements-kubernetes.lock requirements-test.lock
	$(INSTALL_HASHED) --requirement requirements-kubernetes.lock --requirement requirements-test.lock
	$(BIN)/python -m pip check
	@cp requirements-test.lock $(TESTING)

install: $(STAMP)

reproduce: $(STAMP)
	$(BIN)/python workflow/scripts/run.py $(HOW)
	@$(BIN)/python workflow/scripts/summary.py

resume: $(STAMP)
	$(BIN)/python workflow/scripts/resume.py $(HOW)

test: $(TESTING)
	PYTEST_ADDOPTS="-n $(WORKERS) --dist loadfile --no-loadscope-reorder $$PYTEST_ADDOPTS" \
		$(BIN)/python -m pytest $(if $(ALL),--all) $(TESTS)

bench: $(TESTING)
	$(BIN)/python benchmarks/bench.py $(ARGS)

soak: $(TESTING)
	$(BIN)/python tests/soak.py
	$(BIN)/python tests/changes.py --write

verify: $(STAMP)
	@$(BIN)/python workflow/scripts/verify.py $(RESULTS)

compare: $(STAMP)
	@$(BIN)/python workflow/scripts/compare.py "$(A)" "$(B)" "$(OUT)"

try: $(STAMP)
	@$(BIN)/python workflow/scripts/try.py $(METHOD) $(EXPERIMENT)

lint: $(TESTING)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m snakefmt --check .
	$(BIN)/python workflow/scripts/run.py --lint

schemas: $(STAMP)
	cd workflow && ../$(BIN)/python -m consistency.config

# The hashes are those of every file of a release, for whatever machine and Python, as the package index lists them.
lock:
	for file in $(HASHED); do \
		grep -o '^[^ #]*==[^ ;]*' $$file | uv pip compile --quiet --no-deps --generate-hashes --no-header --no-annotate \
			--output-file $$file.new - && mv $$file.new $$file || exit 1; \
	done

envs: $(STAMP)
	$(BIN)/python envs/generate.py

status: $(STAMP)
	@$(BIN)/python workflow/scripts/status.py $(RESULTS) $(if $(WATCH),--watch)

clean:
	rm -rf $(VENV) .snakemake
