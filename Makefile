# Two commands do all the set-up on a fresh machine: `make demo` and `make test`. Both share .venv, which is
# rebuilt only when constraints.txt changes (a new dependency is pinned there, so it does).
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed-$(shell cksum < constraints.txt | cut -d' ' -f1)

# Real data beside the project is used where it exists; elsewhere Sluice downloads, or says what it uses instead.
ifneq ($(wildcard ../shared/data),)
export SLUICE_DATA_DIR ?= $(abspath ../shared/data)
endif

.DEFAULT_GOAL := help
.PHONY: help demo test lint format bench chaos soak venv clean

help: ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

$(STAMP):
	@echo "Making $(VENV): torch and Ray are several gigabytes; once per change of constraints.txt"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "$(PYTHON) is older than Python 3.11; name a newer one: make PYTHON=python3.11"; exit 2; }
	rm -rf $(VENV)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $(STAMP)

venv: $(STAMP) ## Make the virtual environment

demo: $(STAMP) ## Train, compress, profile, deploy, load, report: the main job end to end
	$(BIN)/sluice demo

test: $(STAMP) lint ## ruff, mypy and all tests but chaos and soak
	$(BIN)/python -m pytest

lint: $(STAMP) ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(STAMP) ## Sort imports and fix what ruff can fix
	$(BIN)/ruff check --fix .

bench: $(STAMP) ## The full before/after measurement of benchmarks/PROTOCOL.md (about 25 minutes)
	$(BIN)/sluice demo --protocol full --output docs/results --run bench-$(shell date +%F-%H%M)

chaos: $(STAMP) ## kill -9 of every kind of process under load; figures into docs/results (about 7 minutes)
	$(BIN)/python -m pytest tests/chaos -m chaos

soak: $(STAMP) ## SOAK_S seconds (600) of mixed load: memory and descriptors flat; figures into docs/results
	$(BIN)/python -m pytest tests/chaos -m soak

clean: ## Remove the virtual environment and caches
	rm -rf $(VENV) .mypy_cache .ruff_cache .hypothesis
