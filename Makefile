# With Python >= 3.11, git and make: `make serve` and `make test`. Everything goes into .venv; running again costs nothing.
#   make serve ARGS="--port 9000 --model openclip:ViT-B-32@openai"
#   make PYTHON=python3.12 test

.DEFAULT_GOAL := help
SHELL := /bin/sh
.SHELLFLAGS := -eu -c

VENV ?= .venv
PYTHON ?=
ARGS ?=
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

PEER := build/peers/fastapi/.made

.PHONY: help setup fmt check test run serve bench

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-7s %s\n", $$1, $$2}' Makefile

setup: $(STAMP) ## .venv with everything, pinned by constraints.txt

serve: setup ## serve the demo encoders; ARGS="--port 9000"
	@echo "visiontower serve $(ARGS)"
	@exec $(BIN)/visiontower serve $(ARGS)

run: setup ## any command; ARGS="models demo:vit"
	@exec $(BIN)/visiontower $(ARGS)

test: setup ## the tests; ARGS="tests/test_cli.py -k help"
	$(BIN)/python -m pytest $(ARGS)

check: setup ## lint, format and types; changes nothing
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: setup $(PEER) ## a short bench beside a plain FastAPI handler; ARGS="--work small"
	$(BIN)/python -m benchmarks.serve --quick $(ARGS)

fmt: setup ## format, and fix what can be fixed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The first of these that is at least 3.11 and can make environments; PYTHON=... decides otherwise.
$(BIN)/python:
	@for python in $(PYTHON) python3 python3.14 python3.13 python3.12 python3.11 python; do \
		if "$$python" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
			echo "Making $(VENV) with $$("$$python" --version) ($$(command -v "$$python"))"; \
			exec "$$python" -m venv "$(VENV)"; \
		elif [ -n "$(PYTHON)" ]; then break; fi; \
	done; \
	echo "No usable Python: $(if $(PYTHON),$(PYTHON) is,python3 and python3.11 to python3.14 are) missing, older than 3.11," \
		"or without venv and ensurepip (Debian and Ubuntu: apt install python3-venv). Elsewhere: make PYTHON=/path/to/python3." >&2; \
	exit 1

$(PEER): benchmarks/peers/fastapi/requirements.txt | setup
	$(BIN)/python -m benchmarks.peers fastapi
	@touch $@

$(STAMP): pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing visiontower and its tools into $(VENV), versions from constraints.txt (PyTorch is large: minutes)"
	$(BIN)/python -m pip install --disable-pip-version-check --quiet -c constraints.txt -e '.[dev]'
	@touch $(STAMP)
	@echo "Ready: $(BIN)/visiontower"
