# make setup   builds .venv (torch first) and checks what rendering needs
# make test    ruff, mypy and the tests that are not slow
# make test-oldest   those tests with the oldest gymnasium, Stable-Baselines3 and shimmy that are supported
# make bench   measures speed, the short form; writes benchmarks/RESULTS.md (beside sheeprl where make bench-peers has run)
# make bench-peers   builds .venv-peers, an environment of its own with sheeprl, torchrl and simulusion, for the benchmarks
# make demo    trains a Dreamer, opens its world as Dream-v0, trains PPO inside; writes runs/demo/

PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV := .venv
BIN := $(VENV)/bin
OLDEST := .venv-oldest
STAMP := $(VENV)/.wmgym-installed
PEERS := .venv-peers
PEERS_STAMP := $(PEERS)/.installed

# Small networks: more threads than one only wait for one another.
export OMP_NUM_THREADS ?= 1

# Tests run in a process for each core, four at the most (each takes about a gigabyte).
WORKERS ?= --numprocesses auto --maxprocesses 4 --dist loadfile

.PHONY: setup test test-oldest lint format demo clean

setup: $(STAMP)
	@$(BIN)/python -m wmgym.check_system

# torch comes first and alone, so that a CPU build which lies beside pip is taken and not another one's CUDA libraries.
$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; (3, 10) <= sys.version_info[:2] <= (3, 12) or sys.exit("wmgym needs Python 3.10 to 3.12, and $(PYTHON) is %s: make setup PYTHON=python3.12" % sys.version.split()[0])'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check "$(TORCH)"
	$(BIN)/python -m pip install --disable-pip-version-check "$(TORCH)" -e ".[dev]"
	@touch $(STAMP)

test: lint
	$(BIN)/python -m pytest -m "not slow" $(WORKERS)

test-oldest: $(OLDEST)/.wmgym-installed
	$(OLDEST)/bin/python -m pytest -m "not slow" $(WORKERS)

$(OLDEST)/.wmgym-installed: pyproject.toml .ci/oldest.txt
	$(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/python -m pip install --disable-pip-version-check "$(TORCH)"
	$(OLDEST)/bin/python -m pip install --disable-pip-version-check "$(TORCH)" -c .ci/oldest.txt -e ".[dev]"
	@touch $@

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: setup
	$(BIN)/python -m benchmarks.recipe --repeats 10
	$(BIN)/python -m benchmarks.update --short --repeats 3 $(if $(wildcard $(PEERS_STAMP)),,--no-peer)
	$(BIN)/python -m benchmarks.update --growth --repeats 3
	$(BIN)/python -m benchmarks.replay --states 10000 100000 --pictures 10000
	$(BIN)/python -m benchmarks.collect --rounds 3
	$(BIN)/python -m benchmarks.dream --seconds 0.5
	$(BIN)/python -m benchmarks.planner

bench-peers: $(PEERS_STAMP)

# The same torch as ours, or the comparison would be of versions; mujoco as in pyproject.toml. Of simulusion only its
# environment is run, around a world of this package, and needs none of its requirements.
$(PEERS_STAMP):
	$(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/python -m pip install --disable-pip-version-check "$(TORCH)"
	$(PEERS)/bin/python -m pip install --disable-pip-version-check "$(TORCH)" "sheeprl[dmc]==0.8.4" "torchrl==0.14.1" "mujoco>=3.17,<4"
	$(PEERS)/bin/python -m pip install --disable-pip-version-check --no-deps "simulusion==1.1.0"
	$(PEERS)/bin/python -m pip install --disable-pip-version-check "$(TORCH)" -e .
	@touch $(PEERS_STAMP)

demo: setup
	$(BIN)/python -m agents.zoo.demo

clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
