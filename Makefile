# Everything installs what it needs into environments of its own; python3, make and a package index are enough.
#
#   make demo          real graphs and DAGs over real data, on stock schedulers and on Headrace: under six minutes
#   make test          the tests, on the newest dependencies; those that start an Airflow are in make test-airflow
#   make test-airflow  the tests on a real Airflow, with SQLite and PostgreSQL: about ten minutes
#   make test-oldest   the tests of what depends on others' versions, on the oldest of the declared ranges (.venv-oldest)
#   make test-airflow-oldest  those of the Airflow adapter on the oldest Airflow (.venv-airflow-oldest; Python 3.11 or 3.12)
#   make check         formatting, lint, types, import contracts
#   make compat        other people's test suites on stock schedulers and on Headrace
#   make bench         the whole benchmark suite
#   make demo-airflow  only the DAGs: a real Airflow, with its own executor and with Headrace's
#   make compat-airflow, make bench-airflow   Airflow's example DAGs, and the benchmark, likewise
#   make format        rewrites the sources in the one format
#   make clean         removes environments, caches and outputs
#
# PYTHON chooses the interpreter (3.10 or newer); TEST_ARGS goes to pytest, COMPAT_ARGS and BENCH_ARGS likewise;
# OLDEST_TESTS=tests runs everything on the oldest versions.

PYTHON ?= python3
VENV ?= .venv
VENV_OLDEST ?= .venv-oldest
VENV_AIRFLOW_OLDEST ?= .venv-airflow-oldest
TEST_ARGS ?=
OLDEST_TESTS ?= tests/dask tests/store tests/test_examples.py tests/test_house.py
AIRFLOW_TESTS := $(addprefix tests/airflow/test_,\
	bench_airflow.py contract.py dask_in_tasks.py examples_airflow.py executor_features.py executor_settings.py \
	executor_trouble.py executor_workloads.py page_airflow.py real_airflow.py streams_airflow.py xcom_airflow.py)
AIRFLOW_OLDEST_TESTS ?= $(addprefix tests/airflow/test_,\
	base_executor.py contract.py executor_features.py executor_parts.py xcom.py xcom_airflow.py xcom_rows.py)
COMPAT_ARGS ?=
BENCH_ARGS ?=

BIN := $(VENV)/bin
RUFF_PATHS := core adapters plugins tests examples compat_suite
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help demo test test-airflow test-oldest test-airflow-oldest check check-format check-lint check-types check-imports compat bench format clean \
	demo-airflow compat-airflow bench-airflow
.DELETE_ON_ERROR:

help:
	@sed -n 's/^#   //p' Makefile

demo: $(VENV)/.bench $(VENV)/.airflow
	$(BIN)/headrace bench --demo $(BENCH_ARGS)
	$(BIN)/python -m headrace_airflow.bench.demo examples --json out/demo-airflow.json

bench: $(VENV)/.bench
	$(BIN)/headrace bench --json out/bench.json --chart out/bench.png $(BENCH_ARGS)

test: $(VENV)/.dev
	$(BIN)/python -m pytest $(addprefix --ignore=,$(AIRFLOW_TESTS)) $(TEST_ARGS)

test-airflow: $(VENV)/.dev
	$(BIN)/python -m pytest $(AIRFLOW_TESTS) $(TEST_ARGS)

test-oldest: $(VENV_OLDEST)/.test
	$(VENV_OLDEST)/bin/python -m pytest -o cache_dir=.cache/pytest-oldest $(OLDEST_TESTS) $(TEST_ARGS)

test-airflow-oldest: $(VENV_AIRFLOW_OLDEST)/.test
	$(VENV_AIRFLOW_OLDEST)/bin/python -m pytest -o cache_dir=.cache/pytest-airflow-oldest \
		$(AIRFLOW_OLDEST_TESTS) $(TEST_ARGS)

check: check-format check-lint check-types check-imports

check-format: $(VENV)/.dev
	$(BIN)/ruff format --check $(RUFF_PATHS)

check-lint: $(VENV)/.dev
	$(BIN)/ruff check $(RUFF_PATHS)

check-types: $(VENV)/.dev
	$(BIN)/mypy
	$(BIN)/pyright --pythonpath $(BIN)/python

check-imports: $(VENV)/.dev
	$(BIN)/lint-imports --no-cache

compat: $(VENV)/.dev
	$(BIN)/python -m compat_suite $(COMPAT_ARGS)

demo-airflow: $(VENV)/.airflow
	$(BIN)/python -m headrace_airflow.bench.demo examples --json out/demo-airflow.json

bench-airflow: $(VENV)/.airflow
	$(BIN)/headrace bench-airflow --json out/bench-airflow.json $(BENCH_ARGS)

compat-airflow: $(VENV)/.dev
	$(BIN)/python -m compat_suite.dags $(COMPAT_ARGS)

format: $(VENV)/.dev
	$(BIN)/ruff format $(RUFF_PATHS)
	$(BIN)/ruff check --fix $(RUFF_PATHS)

clean:
	rm -rf $(VENV) $(VENV_OLDEST) $(VENV_AIRFLOW_OLDEST) .cache .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache build dist out
	find core adapters plugins tests examples compat_suite -name __pycache__ -type d -prune -exec rm -rf {} +

# A stamp is newer than all that decides what is installed, so a second call does nothing.

$(VENV)/.bench: $(VENV)/.made pyproject.toml constraints/latest.txt
	$(BIN)/python -m pip install --quiet --constraint constraints/latest.txt --editable '.[bench]'
	@touch $@

$(VENV)/.airflow: $(VENV)/.made pyproject.toml constraints/latest.txt
	$(BIN)/python -m pip install --quiet --constraint constraints/latest.txt --editable '.[bench-airflow]'
	@touch $@

$(VENV)/.dev: $(VENV)/.made pyproject.toml constraints/latest.txt
	$(BIN)/python -m pip install --quiet --constraint constraints/latest.txt --editable '.[dev,bench-airflow]'
	@touch $@ $(VENV)/.bench $(VENV)/.airflow

$(VENV_OLDEST)/.test: $(VENV_OLDEST)/.made pyproject.toml constraints/oldest.txt
	$(VENV_OLDEST)/bin/python -m pip install --quiet --constraint constraints/oldest.txt --editable '.[test]'
	@touch $@

$(VENV_AIRFLOW_OLDEST)/.test: $(VENV_AIRFLOW_OLDEST)/.made pyproject.toml constraints/oldest-airflow.txt
	$(VENV_AIRFLOW_OLDEST)/bin/python -m pip install --quiet --constraint constraints/oldest-airflow.txt \
		--editable '.[test,bench-airflow]' apache-airflow-providers-git
	@touch $@

%/.made:
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 10) or sys.exit("Headrace needs Python 3.10 or newer: make PYTHON=...")'
	$(PYTHON) -m venv $*
	@touch $@
