# make demo   the whole way once on real images, in ./demo-home
# make test   the tests but the slow ones;  make lint  style, imports and types;  make bench  the figures
# make test-all  every test, but most of make cluster: before a release
# make coverage  every test, and which lines and branches none of them reaches
# make up     Qdrant and PostgreSQL in Docker, with QDRANT_API_KEY and POSTGRES_PASSWORD;  make down  stops them
# make live   the tests against real servers, which MODALIGN_TEST_QDRANT_BINARY or Docker starts
# make cluster  the tests that start machines of Ray; one of them is in make test
# Each makes the virtual environment in .venv when it is missing. Another Python: make PYTHON=python3.12 demo

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
OLDEST := import sys; sys.exit(0 if sys.version_info >= (3, 11) else "modalign needs Python 3.11 or newer: make PYTHON=python3.11 ...")

.PHONY: demo test test-all coverage lint bench up down live cluster clean

demo: $(VENV)/.demo
	$(BIN)/modalign demo --home demo-home

# Tests start hundreds of processes, each of which would compile modalign again.
unexport PYTHONDONTWRITEBYTECODE

# Files go to as many processes as there are cores, of one thread each: more threads than cores wait for each other.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

test: $(VENV)/.dev
	$(PYTEST) -m "not cluster and not slow"

test-all: $(VENV)/.dev
	$(PYTEST) -m "not cluster"

coverage: $(VENV)/.dev
	$(PYTEST) -m "not cluster" --cov --cov-report term-missing

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache --no-logo
	$(BIN)/deptry .
	$(BIN)/deptry . --exclude '\.venv|\.git' --ignore DEP002,DEP004  # by default it leaves tests out
	$(BIN)/mypy

bench: $(VENV)/.dev
	$(BIN)/python -m bench

up:
	docker compose up --detach --wait

down:
	docker compose down

live: $(VENV)/.dev
	$(PYTEST) tests -m live

# One process after the other: each test waits for processes of Ray, which want the cores, and each file has a cluster.
cluster: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/pytest tests/connector/executors -m cluster
	OMP_NUM_THREADS=1 $(BIN)/pytest tests/connector/ray -m cluster

clean:
	rm -rf $(VENV) demo-home .mypy_cache .pytest_cache .ruff_cache

# A stamp is newer than pyproject.toml once everything that it names is installed.
$(VENV)/.demo $(VENV)/.dev: $(VENV)/.%: pyproject.toml
	@$(PYTHON) -c '$(OLDEST)'
	@echo "installing into $(VENV): PyTorch and friends take a few minutes and about 6 GB the first time"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --editable '.[$*]'
	@touch $@
