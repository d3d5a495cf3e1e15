# crypto-qlib: everything a person types. `make` alone lists the targets.
# Needs Python 3.11 or 3.12; everything else is installed into .venv (about 3.5 GB of disk).
SHELL := /bin/bash
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DEMO := demo
RUN_ARGS ?=
PYTEST_ARGS ?=
BENCH_ARGS ?=
# Workers of the test run: one for each core, at most four.
WORKERS ?= $(shell n=$$(nproc 2>/dev/null || sysctl -n hw.ncpu 2>/dev/null || echo 1); [ "$$n" -gt 4 ] && n=4; echo $$n)

export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_NO_INPUT := 1
export MPLBACKEND := Agg

.PHONY: help install demo test check lint types contracts format bench docs audit clean distclean

help: ## Show this list
	@echo "crypto-qlib: make TARGET"
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

$(STAMP): pyproject.toml
	@set -e; \
	if [ ! -x $(BIN)/python ]; then \
	  python=""; \
	  for candidate in $(PYTHON) python3.11 python3.12 python3 python; do \
	    if "$$candidate" -c 'import sys, ensurepip; raise SystemExit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' >/dev/null 2>&1; \
	    then python="$$candidate"; break; fi; \
	  done; \
	  if [ -z "$$python" ]; then \
	    echo "error: no Python 3.11 or 3.12 with venv was found (Qlib has no wheel for 3.13)" >&2; \
	    echo "hint: install one (Debian/Ubuntu: apt install python3.12-venv) or name it: make PYTHON=/path/to/python3.12" >&2; \
	    exit 2; \
	  fi; \
	  echo "creating $(VENV) with $$("$$python" --version)"; \
	  "$$python" -m venv $(VENV); \
	fi; \
	echo "installing crypto-qlib and its libraries into $(VENV) (about 3.5 GB; minutes the first time)"; \
	$(BIN)/python -m pip install --quiet -e '.[dev]'; \
	touch $@

install: $(STAMP) ## Create .venv and install everything into it (about 3.5 GB)

demo: $(STAMP) ## Data, features, model, backtest, report and a paper session on the simulated market, into ./demo
	@$(BIN)/crypto-qlib run --set store.root=$(DEMO) $(RUN_ARGS)

test: check ## Everything: lint, types, contracts and the whole test suite (what CI runs)
	@$(BIN)/pytest -q -n $(WORKERS) -m slow $(PYTEST_ARGS)

check: lint types contracts ## Lint, types, import contracts and the fast tests
	@$(BIN)/pytest -q -n $(WORKERS) -m "not slow" $(PYTEST_ARGS)

lint: $(STAMP) ## Ruff: rules and format
	@$(BIN)/ruff check --quiet . && $(BIN)/ruff format --quiet --check .

types: $(STAMP) ## Mypy, strict
	@$(BIN)/mypy --no-error-summary

contracts: $(STAMP) ## Who may import whom
	@$(BIN)/lint-imports --no-cache

format: $(STAMP) ## Mend what ruff can mend
	@$(BIN)/ruff check --quiet --fix . ; $(BIN)/ruff format --quiet .

bench: $(STAMP) ## Run the benchmarks
	@$(BIN)/python -m benchmarks $(BENCH_ARGS)

docs: $(STAMP) ## Write the pages made from the code (settings, features), and check what the documentation names
	@$(BIN)/python docs/build.py
	@$(BIN)/pytest -q tests/architecture/test_docs.py

audit: $(STAMP) ## Known vulnerabilities of the installed libraries (asks the package index; says so when it cannot)
	@.ci/audit

clean: ## Remove caches and build leftovers
	@rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	@find src tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean ## Remove .venv and the demo too
	@rm -rf $(VENV) $(DEMO)
