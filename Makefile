# Two commands do all the set-up on a fresh machine: `make demo` and `make test`. Both share .venv, which is
# rebuilt only when constraints.txt changes (a new dependency is pinned there, so it does).
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
NAME ?= cnn_fashion_mnist_quick
BIN := $(VENV)/bin
# These compute and measure no load, so two files of them may run side by side.
COMPUTE := tests/unit/train_jobs tests/unit/benchmarks tests/contracts
STAMP := $(VENV)/.installed-$(shell cksum < constraints.txt | cut -d' ' -f1)

# Real data beside the project is used where it exists; elsewhere Sluice downloads, or says what it uses instead.
ifneq ($(wildcard ../shared/data),)
export SLUICE_DATA_DIR ?= $(abspath ../shared/data)
endif

.DEFAULT_GOAL := help
.PHONY: help demo test lint format conformance tour fuzz bench bench-search bench-serving bench-loadgen chaos soak venv browser \
  clean

help: ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-13s %s\n", $$1, $$2}'

$(STAMP):
	@echo "Making $(VENV): torch and Ray are several gigabytes; once per change of constraints.txt"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "$(PYTHON) is older than Python 3.11; name a newer one: make PYTHON=python3.11"; exit 2; }
	rm -rf $(VENV)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $(STAMP)

venv: $(STAMP) ## Make the virtual environment

demo: $(STAMP) ## Train, compress, tune, deploy, load, report: the main job end to end
	$(BIN)/sluice demo

test: $(STAMP) browser lint ## ruff, mypy and all tests but chaos and soak
	$(BIN)/python -m pytest -n 2 --dist loadfile --durations=10 $(COMPUTE)
	$(BIN)/python -m pytest --durations=25 $(addprefix --ignore=,$(COMPUTE))

browser: ## The tests look at our pages in a real Chromium: installs Debian's where there is none and we may
	@command -v chromium > /dev/null || command -v chromium-browser > /dev/null || command -v google-chrome > /dev/null || \
	  { [ "$$(id -u)" = 0 ] && command -v apt-get > /dev/null && apt-get update -qq && \
	    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq chromium > /dev/null; } || \
	  echo "No Chromium here, so the tests of our pages will fail; install one: apt-get install chromium"

lint: $(STAMP) ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(STAMP) ## Sort imports and fix what ruff can fix
	$(BIN)/ruff check --fix .

bench: $(STAMP) ## The full before/after measurement of benchmarks/PROTOCOL.md (about 25 minutes)
	$(BIN)/sluice demo --protocol full --output docs/results --run bench-$(shell date +%F-%H%M)

bench-search: $(STAMP) ## Brute force beside the search: is its choice right? Needs `make demo` or a trained NAME (about 40 minutes)
	$(BIN)/python -m benchmarks.search_quality $(NAME) --output docs/results/$(shell date +%F)-search

bench-serving: $(STAMP) ## Throughput, SLO rate and deadlines beside Mosec, LitServe, BentoML and stock Ray Serve (hours; goes on where it was)
	@command -v wrk > /dev/null || [ "$$(id -u)" = 0 ] || { echo "No wrk here; install it: apt-get install wrk"; exit 2; }
	$(BIN)/python -m benchmarks.serving --output docs/results/$(shell date +%F)-serving

bench-loadgen: $(STAMP) ## MLPerf LoadGen as the load source: the highest rate that it calls VALID; needs a trained cnn_fashion_mnist (10 minutes)
	$(BIN)/python -m benchmarks.loadgen

conformance: $(STAMP) ## Clients that we did not write x the protocol's tables, against a deployment; the table into docs/results (3 minutes)
	$(BIN)/python -m tests.conformance

tour: $(STAMP) ## Every line of docs/tour.md: an LSTM, a GAN and a VAE, from training to curl (minutes)
	$(BIN)/python -m pytest tests/integration/test_tour.py -m tour

fuzz: $(STAMP) ## Over 10,000 malformed, torn and hostile requests, right ones between; the report into docs/results (5 minutes)
	$(BIN)/python -m tests.fuzz

chaos: $(STAMP) ## kill -9 of every kind of process, and a thousand switches of variants, under load; figures into docs/results (about 15 minutes)
	$(BIN)/python -m pytest tests/chaos tests/integration/test_demo.py -m chaos

soak: $(STAMP) ## SOAK_S seconds (600) of mixed load, then of twice what can be served: memory and descriptors flat; figures into docs/results
	$(BIN)/python -m pytest tests/chaos -m soak

clean: ## Remove the virtual environment and caches
	rm -rf $(VENV) .mypy_cache .ruff_cache .hypothesis
