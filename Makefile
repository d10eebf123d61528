# make run    set everything up in .venv, then run the main job: a warm start for MiniGrid-MultiRoom-N6
# make test   set everything up in .venv, then run the tests
# make bench  measure the engine against Python minigrid, Stable-Baselines3 and imitation: some minutes on one core
#
# Setting up is repeated only when pyproject.toml or constraints.txt changes.

PYTHON ?= $(shell for python in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; done)
BIN := .venv/bin
READY := .venv/ready

# Several processes share the cores: more threads in each only get in each other's way.
export OMP_NUM_THREADS ?= 1

.PHONY: run test test-all bench lint format setup clean

run: $(READY)
	$(BIN)/headstart run multi_room

test: $(READY)
	$(BIN)/python -m pytest

test-all: $(READY)
	$(BIN)/python -m pytest -m "slow or not slow"

bench: $(READY)
	$(BIN)/python experiments/bench.py

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

setup: $(READY)

# Debian splits ensurepip from venv; the pip outside can then install the one inside.
$(READY): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "No Python 3.11 or newer found. Name one: make PYTHON=/path/to/python3.12"; exit 2; }
	@echo "Setting up .venv; the first time this downloads PyTorch and takes some minutes."
	@$(PYTHON) -m venv .venv >/dev/null 2>&1 || { $(PYTHON) -m venv --clear --without-pip .venv \
		&& $(PYTHON) -m pip --python $(BIN)/python install --quiet pip; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $(READY)

clean:
	rm -rf .venv build dist headstart.egg-info .pytest_cache .ruff_cache .hypothesis
	find envs models learners experiments tests -name __pycache__ -exec rm -rf {} +
