# Everything that a newcomer or CI calls. `make` alone lists the targets.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
JOBS ?= 2

.DEFAULT_GOAL := help
.PHONY: help demo test test-all slow lint format bench fuzz clean protos

help:
	@echo "make demo      train two small models, serve them, show a curl line"
	@echo "make test      lint, types and the fast suites (unit, contract, integration, e2e)"
	@echo "make test-all  the same, then the slow suites"
	@echo "make lint      ruff and mypy only        make format  let ruff rewrite"
	@echo "make bench     measure against others    make fuzz    many more generated cases"
	@echo "make clean     remove caches, the demo's files and the virtual environment"

# One stamp for each set of packages: they are installed when missing, or when a list changed.
$(VENV)/.demo: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) -e '.[demo]'
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) -e '.[dev]'
	@touch $@ $(VENV)/.demo

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "make: Python 3.11 or later is needed; name one with PYTHON=python3.12"; exit 1; }
	@if ! $(PYTHON) -c 'import ensurepip' 2>/dev/null; then \
		if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
			apt-get update -qq && apt-get install -y -qq --no-install-recommends python3-venv; \
		else \
			echo "make: Python's venv module is missing; run: sudo apt-get install python3-venv"; exit 1; \
		fi; \
	fi
	$(PYTHON) -m venv $(VENV)

# Byte code is written even where the environment says not to: it makes each start faster.
demo: $(VENV)/.demo
	@$(BIN)/python -m compileall -q src
	@if [ -t 0 ] && [ "$${CI:-}" != true ]; then exec $(BIN)/muelle demo; \
	else echo "no terminal: each model is asked once, then the server ends"; exec $(BIN)/muelle demo --check; fi

test: lint
	$(BIN)/python -m compileall -q src
	$(BIN)/python -m pytest -n $(JOBS) -m 'not slow' -q tests

test-all: test slow

slow: $(VENV)/.dev
	$(BIN)/python -m pytest -m slow -q --timeout 1800 tests

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

protos: $(VENV)/.dev
	$(BIN)/python tools/compile_protos.py

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.dev
	@$(BIN)/python -m compileall -q src
	@command -v wrk >/dev/null || { echo "make: wrk is missing; run: sudo apt-get install wrk"; exit 1; }
	@command -v h2load >/dev/null || { echo "make: h2load is missing; run: sudo apt-get install nghttp2-client"; exit 1; }
	$(BIN)/python -m bench.run $(BENCH_ARGS)
	$(BIN)/python -m bench.grpc $(BENCH_ARGS)

fuzz: $(VENV)/.dev
	$(BIN)/python -m pytest -n $(JOBS) -m hypothesis -q --timeout 1800 --hypothesis-profile=fuzz tests

clean:
	rm -rf $(VENV) demo build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis bench/work
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
