# Everything a checkout can do, from nothing but Python 3.10 or newer: `make` lists it.
#
#   make demo PYTHON=python3.12     another interpreter for the virtual environment
#   make test VENV=/path/to/env     another place for it
#   make test WORKERS=4             how many test processes

PYTHON  ?= python3
VENV    ?= .venv
EXTRAS  ?= dev,test
WORKERS ?= $(shell $(PYTHON) -c "import os; print(min(8, os.cpu_count() or 1))")

RUN       := $(VENV)/bin/python
INSTALLED := $(VENV)/.fastdl-installed
# Given here and not in pyproject.toml, since `make gpu-test` runs where the plugins may be missing.
PYTEST    := -m pytest --numprocesses $(WORKERS) --dist worksteal --timeout 300 --benchmark-disable

.DEFAULT_GOAL := help
.PHONY: help install demo test test-slow lint format bench gpu-test gpu-bench clean distclean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: $(INSTALLED) ## make the virtual environment and install fastdl into it, editable

# The stamp is older than what it was made from after every change of the dependencies.
$(INSTALLED): pyproject.toml constraints.txt setup.py
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	    echo "fastdl needs Python 3.10 or newer; $(PYTHON) is $$($(PYTHON) --version 2>&1). Name another one: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	    echo "$(PYTHON) cannot make virtual environments. Install its venv module (Debian, Ubuntu: apt install python3-venv)."; exit 1; }
	@test -x $(RUN) || { echo "making the virtual environment $(VENV)"; $(PYTHON) -m venv $(VENV); }
	@echo "installing fastdl and what it needs into $(VENV)"
	@$(RUN) -m pip install --disable-pip-version-check --constraint constraints.txt --editable ".[$(EXTRAS)]"
	@touch $@

demo: $(INSTALLED) ## a small run of everything: parity, speed, an experiment with its table and plot
	@$(VENV)/bin/fastdl demo

test: lint $(INSTALLED) ## lint, types, and all tests but the slow ones
	@$(RUN) $(PYTEST) -m "not slow"

test-slow: lint $(INSTALLED) ## the same with the slow tests
	@$(RUN) $(PYTEST)

lint: $(INSTALLED) ## style, format and types
	@$(RUN) -m ruff check .
	@$(RUN) -m ruff format --check .
	@$(RUN) -m mypy

format: $(INSTALLED) ## put the sources into the one format
	@$(RUN) -m ruff format .
	@$(RUN) -m ruff check --fix .

bench: $(INSTALLED) ## every op: ours, eager, compiled, floor; ends within 15 minutes on two cores
	@$(RUN) -m bench

# On a machine with a GPU the tree is often a plain copy and nothing may be installed: the two targets below use $(PYTHON)
# as it is, with the tree on PYTHONPATH (fastdl/_layout.py finds kernels/ and bench/ there). Each ends by itself within
# eight minutes, and keeps in OUTPUT_DIR what it has found until then. Without a GPU the commands end with status 3,
# which make reports as an error 3 and returns as its own 2.
#
#   make gpu-test PYTHON=python3 OUTPUT_DIR=results ONLY="group_norm memcheck"
#   make gpu-bench OUTPUT_DIR=results BENCH="group_norm --dtype bfloat16"
#   make gpu-bench OUTPUT_DIR=results RESUME=1      again and again, until everything is measured
OUTPUT_DIR ?= gpu-results
GPU_RUN := cd "$(CURDIR)" && PYTHONPATH="$(CURDIR)" $(PYTHON)
GPU_BENCH := PYTHONPATH="$(CURDIR)" $(PYTHON) -m bench

gpu-test: ## parity on a GPU and compute-sanitizer, from a plain copy of the tree; installs nothing
	@$(GPU_RUN) -m tests.gpu --output-dir "$(OUTPUT_DIR)" $(if $(ONLY),--only $(ONLY))

gpu-bench: ## the benchmarks on a GPU, from a plain copy of the tree; installs nothing
	@$(GPU_RUN) -m tests.gpu --only-check
	@cd "$(CURDIR)"; status=0; \
	    $(GPU_BENCH) $(BENCH) --device cuda --output-dir "$(OUTPUT_DIR)" $(if $(RESUME),--resume) || status=$$?; \
	    $(if $(strip $(BENCH)),:,$(GPU_BENCH) training --device cuda --dtype bfloat16 --output-dir "$(OUTPUT_DIR)" \
	        $(if $(RESUME),--resume) || status=$$?); \
	    exit $$status

clean: ## remove what building, testing and running left behind; keeps the virtual environment
	@rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks .coverage htmlcov
	@find . -name __pycache__ -type d -not -path './.venv/*' -prune -exec rm -rf {} +

distclean: clean ## the same, and the virtual environment
	@rm -rf $(VENV)
