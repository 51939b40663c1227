# With Python >= 3.11, git and make: `make serve` and `make test`. Everything goes into .venv; running again costs nothing.
#   make serve ARGS="--port 9000 --model openclip:ViT-B-32@openai"
#   make PYTHON=python3.12 test
#   make test JOBS=0 ARGS="tests/house --pdb"

.DEFAULT_GOAL := help
SHELL := /bin/sh
.SHELLFLAGS := -eu -c

VENV ?= .venv
PYTHON ?=
ARGS ?=
JOBS ?= 2
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# In a tenth of pip's time.
export UV_SYSTEM_CERTS := 1
UV = $(BIN)/uv pip install --quiet

# JOBS processes with one thread each, a file's tests in one of them: most tests wait for loading, which no second
# thread helps. In the files' order: by number of tests, as xdist does it, the files of few long tests come last and one
# core waits. A process takes up to 3 GB. JOBS=0: in this process, for a debugger.
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $(JOBS) --dist loadfile --no-loadscope-reorder

PEER := build/peers/fastapi/.made
CLIENTS := build/clients/.venv
PROMETHEUS := build/prometheus/usr/bin

# The page's files, and the tools that check and format them: tests/browser/package.json. Without npm these are skipped.
PAGE := service/http/web/static
PAGE_BIN := build/browser/node_modules/.bin
PAGE_TOOLS := $(if $(shell command -v npm),build/browser/.made)
PRETTIER = $(PAGE_BIN)/prettier --config tests/browser/package.json --ignore-path tests/browser/.prettierignore $(PAGE)
WITHOUT_NPM = @echo "The page's JavaScript, CSS and HTML: skipped, npm is missing"

.PHONY: help setup fmt check test test-slow run serve bench clients browser prometheus version release sbom

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-9s %s\n", $$1, $$2}' Makefile

setup: $(STAMP) ## .venv with everything, pinned by constraints.txt

serve: setup ## serve the demo encoders; ARGS="--port 9000"
	@echo "visiontower serve $(ARGS)"
	@exec $(BIN)/visiontower serve $(ARGS)

run: setup ## any command; ARGS="models demo:vit"
	@exec $(BIN)/visiontower $(ARGS)

# SLOW=1: in one run, for each run begins with 20 seconds of collecting.
SLOW_NEEDS := clients browser prometheus $(PAGE_TOOLS)

test: setup $(if $(SLOW),$(SLOW_NEEDS)) ## the quick tests, with SLOW=1 all; ARGS="tests/service/cli -k help"
	$(PYTEST) $(if $(SLOW),--durations 20,-m "not slow") $(ARGS)

test-slow: setup $(SLOW_NEEDS) ## the other tests: large models, every combination, the stub card
	$(PYTEST) -m slow --durations 20 $(ARGS)

check: setup $(PAGE_TOOLS) ## lint, format and types; changes nothing
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
ifdef PAGE_TOOLS
	$(PAGE_BIN)/tsc --project tests/browser/tsconfig.json
	$(PRETTIER) --check
else
	$(WITHOUT_NPM)
endif

clients: $(CLIENTS)/.made ## build/clients: other people's libraries, for the programs in docs/

bench: setup $(PEER) ## a short bench beside a plain FastAPI handler; ARGS="--work small"
	$(BIN)/python -m benchmarks.serve --quick $(ARGS)

fmt: setup $(PAGE_TOOLS) ## format, and fix what can be fixed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
ifdef PAGE_TOOLS
	$(PRETTIER) --write
else
	$(WITHOUT_NPM)
endif

browser: ## a Chromium for the page's tests: the system's, or as root Debian's
	@for name in chromium chromium-browser google-chrome; do command -v "$$name" >/dev/null && exit; done; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		echo "Installing Debian's Chromium"; \
		apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium >/dev/null && exit; \
	fi; \
	echo "There is no Chromium: the page's tests are skipped. Install one as chromium, chromium-browser or" \
		"google-chrome (Debian: apt install chromium)."

# Debian's package brings a service and starts it; what is unpacked into build/ runs when a test starts it.
prometheus: ## Prometheus for the tests of its rules: the system's, or Debian's in build/prometheus
	@PATH="$(CURDIR)/$(PROMETHEUS):$$PATH"; command -v prometheus >/dev/null && command -v promtool >/dev/null && exit; \
	if command -v apt-get >/dev/null && command -v dpkg-deb >/dev/null; then \
		echo "Unpacking Debian's Prometheus into build/prometheus"; \
		mkdir -p build/prometheus; cd build/prometheus; \
		apt-get update -qq 2>/dev/null || true; \
		apt-get download -qq -o APT::Sandbox::User=root prometheus && dpkg-deb -x prometheus_*.deb . && rm prometheus_*.deb && exit; \
	fi; \
	echo "There is no Prometheus: the tests of its rules are skipped. Install prometheus and promtool" \
		"(Debian: apt install prometheus)."

# Releases: docs/releasing.md.
RELEASE := build/release
CLEAN := $(RELEASE)/.venv/bin

version: setup ## VERSION=0.2.0: of service and client; docs/changes into CHANGELOG.md
	$(if $(VERSION),,$(error say which: make version VERSION=0.2.0))
	$(BIN)/uv version --frozen $(VERSION)
	$(BIN)/uv version --frozen --project client $(VERSION)
	$(BIN)/towncrier build --yes --version $(VERSION)

release: $(CLEAN)/visiontower sbom ## dist: wheels and source archives, tried in a clean environment
	cd $(RELEASE) && .venv/bin/visiontower --version && .venv/bin/visiontower similarity \
		"$(CURDIR)/docs/example.png" "a red circle" --model demo:vit
	$(CLEAN)/python -c "import visiontower_client"

sbom: $(RELEASE)/licences.txt ## build/release: the SBOM (CycloneDX) of that environment, and its licences

$(RELEASE)/licences.txt: $(CLEAN)/visiontower deploy/licences.py
	$(BIN)/uv tool run --from cyclonedx-bom==7.5.0 cyclonedx-py environment --pyproject pyproject.toml \
		-o $(RELEASE)/sbom.json $(RELEASE)/.venv
	$(BIN)/python deploy/licences.py $(RELEASE)/sbom.json > $@

# A wheel is built from the source archive, so that the archive is tried too.
$(CLEAN)/visiontower: $(shell git ls-files encoders service client pyproject.toml constraints.txt README.md LICENSE 2>/dev/null) | setup
	rm -rf dist $(RELEASE)
	$(BIN)/uv build --quiet --out-dir dist .
	$(BIN)/uv build --quiet --out-dir dist client
	$(BIN)/uv tool run twine==7.0.0 check --strict dist/*
	$(BIN)/uv venv --quiet --python $(BIN)/python $(RELEASE)/.venv
	$(UV) --python $(CLEAN)/python -c constraints.txt dist/*.whl

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

$(CLIENTS)/.made: tests/clients/requirements.txt | setup
	@echo "Installing the clients of docs/recipes.md and docs/search.md into $(CLIENTS)"
	@rm -rf $(CLIENTS)
	$(BIN)/python -m venv $(CLIENTS)
	$(UV) --python $(CLIENTS)/bin/python -r $<
	@touch $@

build/browser/.made: tests/browser/package.json
	@mkdir -p $(@D)
	@cp $< $(@D)
	npm install --prefix $(@D) --no-audit --no-fund --no-package-lock --silent
	@touch $@

$(STAMP): pyproject.toml client/pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing visiontower and its tools into $(VENV), versions from constraints.txt (PyTorch is large: minutes)"
	$(BIN)/python -m pip install --disable-pip-version-check --quiet uv==0.13.9
	$(UV) --python $(BIN)/python -c constraints.txt -e '.[dev]' -e './client[fast]' || $(BIN)/python -m pip install \
		--disable-pip-version-check --quiet -c constraints.txt -e '.[dev]' -e './client[fast]'
	@touch $(STAMP)
	@echo "Ready: $(BIN)/visiontower"
