# The day's commands. `make` alone lists them.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python

.DEFAULT_GOAL := help
.PHONY: help setup check fix test demo demo-shell sync-all run-reverse-etl init-db build lock clean

help: ## list these commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "%-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(VENV)/ready ## make .venv with everything in it

$(VENV)/ready: pyproject.toml requirements-dev.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Python 3.11 or newer is needed: make PYTHON=python3.12 setup"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --require-hashes -r requirements-dev.lock
	$(RUN) -m pip install --quiet --no-deps --no-build-isolation -e .
	@touch $@

check: setup ## lint, format and types
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/mypy

fix: setup ## let ruff put right what it can
	$(VENV)/bin/ruff check --fix
	$(VENV)/bin/ruff format

test: setup ## all tests, on real servers that they start and stop
	$(VENV)/bin/pytest

demo: setup ## the three syncs on real servers with a sample warehouse
	@$(RUN) -m etl.demo

demo-shell: setup ## the same, then keep the servers up until Ctrl-C
	@$(RUN) -m etl.demo --keep

init-db: setup ## create or complete the tables in Postgres
	@$(RUN) -m etl.init_db

sync-all: setup ## run every sync with the settings of the environment
	@$(RUN) -m etl --sync all

run-reverse-etl: sync-all ## the same as sync-all

build: setup ## wheel and sdist in dist/
	rm -rf dist
	$(RUN) -m build --no-isolation

lock: setup ## pin the dependencies anew, with hashes
	$(RUN) -m pip install --quiet uv
	$(VENV)/bin/uv pip compile $(LOCK) pyproject.toml -o requirements.lock
	$(VENV)/bin/uv pip compile $(LOCK) --all-extras --group dev -c requirements.lock \
		pyproject.toml -o requirements-dev.lock

LOCK := --quiet --upgrade --universal --python-version 3.11 --generate-hashes --no-header \
	--no-annotate --no-emit-index-url --no-emit-find-links

clean: ## remove .venv, the demo's data and what was built
	rm -rf $(VENV) .demo dist
