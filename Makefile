# `make demo` and `make test` do everything on a new machine that has python3.11 (or newer) and make.
# PYTHON=… chooses the interpreter; ARGS=… is passed on (make demo ARGS=--stay); WORKERS=… is how
# many processes test at once, each file in one of them.

ifndef PYTHON
PYTHON := $(shell python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	&& echo python3 || echo python3.11)
endif
ARGS ?=
WORKERS ?= 2
VENV := .venv
BIN := $(VENV)/bin

# The second name is what newer pips read for the isolated build environment, the first what older
# ones do. Not exported: the stock clients' environments have pins of their own.
PIP := PIP_CONSTRAINT=constraints.txt PIP_BUILD_CONSTRAINT=constraints.txt \
	PIP_DISABLE_PIP_VERSION_CHECK=1 $(BIN)/python -m pip install --quiet

# What is installed follows from these files. Stamps lie inside the environment, so that they go
# when it goes.
SOURCES := pyproject.toml constraints.txt sidecar/__init__.py $(wildcard proto/*.proto proto/*.py)
INSTALLED_DEMO := $(VENV)/.installed-demo
INSTALLED_DEV := $(VENV)/.installed-dev

.DELETE_ON_ERROR:
.PHONY: help demo test lint format clients peers backends image bench clean

help:
	@echo 'make demo     train, serve and watch digit classifiers (ARGS=--stay: go on serving)'
	@echo 'make test     lint, then every test, stock clients, a peer and a backend included'
	@echo 'make lint     ruff, mypy, import-linter'
	@echo 'make format   let ruff format the code'
	@echo 'make bench    the figures of docs/benchmarks.md'
	@echo 'make clients  the environment of the stock clients (.venvs/clients)'
	@echo 'make peers    the environment of a peer server (.venvs/mlserver)'
	@echo 'make backends the environment of a backend for traces (.venvs/phoenix)'
	@echo 'make image    the environment of the image, made by its steps (.venvs/image)'
	@echo 'make clean    remove everything that was made'

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo 'Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11'; exit 1; }
	@echo 'making $(VENV)'
	@$(PYTHON) -m venv $(VENV) || \
		{ rm -rf $(VENV); echo 'on Debian and Ubuntu: apt install python3-venv'; exit 1; }

# The order-only prerequisite: pip touches the interpreter's folder, which is no reason to install.
$(INSTALLED_DEMO): $(SOURCES) | $(BIN)/python
	@echo 'installing the package and what the demo needs'
	@$(PIP) --editable '.[demo]'
	@touch $@

$(INSTALLED_DEV): $(SOURCES) | $(BIN)/python
	@echo 'installing the package and what its development needs'
	@$(PIP) --editable '.[dev]'
	@touch $(INSTALLED_DEMO) $@

demo: $(INSTALLED_DEMO)
	@$(BIN)/sidecar demo $(ARGS)

test: lint clients peers backends image
	$(BIN)/pytest --numprocesses $(WORKERS) --dist loadfile $(ARGS)

lint: $(INSTALLED_DEV)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(INSTALLED_DEV)
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

# Each script looks by itself whether there is anything to do.
clients:
	@sh tests/clients/make_env.sh $(PYTHON)

peers:
	@sh tests/peers/make_env.sh $(PYTHON)

backends:
	@sh tests/backends/phoenix/make_env.sh $(PYTHON)

image:
	@sh tests/helm/make_env.sh $(PYTHON)

bench: $(INSTALLED_DEV)
	$(BIN)/python -m tests.benchmarks $(ARGS)

clean:
	rm -rf $(VENV) .venvs build dist demo-output *.egg-info
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	rm -f sidecar/protocol/pb/*_pb2.py sidecar/protocol/pb/*_pb2.pyi
	find sidecar validators exporters tests proto -name __pycache__ -type d -prune -exec rm -rf {} +
