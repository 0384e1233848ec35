# One environment, .venv, made on first use and again when pyproject.toml changes: each target works by itself.
PYTHON ?= python3
BIN = .venv/bin
# Most tests wait for something most of the time.
JOBS ?= 4
PYTEST = $(BIN)/python -m pytest --numprocesses $(JOBS) --dist worksteal
PIP_INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check --editable

.PHONY: help venv check format test faults mutants demo bench clean

help:
	@echo 'make demo     watch three nodes work on a SQLite file, and one be killed'
	@echo 'make check    format, lint, layers, types'
	@echo 'make test     every test on every database that can be had; ARGS="-k sqlite" for fewer'
	@echo 'make faults   every point of the fault sweeps and the long forms; ARGS="--seed 1 --iterations 3 --duration 60"'
	@echo 'make mutants  which check catches which guard that is taken out of a copy of the source'
	@echo 'make bench    the benchmarks; ARGS are handed on'
	@echo 'make format   rewrite the code as make check wants it'
	@echo 'make clean    remove what the others made, .venv too'

venv: .venv/.dev

check: .venv/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/mypy

format: .venv/.dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

test: .venv/.dev
	$(PYTEST) $(ARGS)

faults: .venv/.dev
	$(PYTEST) tests/faults --long $(ARGS)

mutants: .venv/.dev
	$(BIN)/python -m tests.mutants $(ARGS)

demo: .venv/.demo
	folder=$$(mktemp -d) && trap 'rm -rf "$$folder"' EXIT && \
	PYASYNC_DATABASE="sqlite:///$$folder/demo.db" $(BIN)/python -m pyasync demo $(ARGS)

bench: .venv/.dev
	$(BIN)/python -m benchmarks $(ARGS)

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	$(PYTHON) -m venv .venv

.venv/.demo: pyproject.toml | $(BIN)/python
	$(PIP_INSTALL) '.[cli]'
	touch $@

# All that the demo needs is in here too.
.venv/.dev: pyproject.toml | $(BIN)/python
	$(PIP_INSTALL) '.[dev]'
	touch $@ .venv/.demo
