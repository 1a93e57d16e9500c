# `make demo` and `make test` do all their set-up themselves. `make help` lists the rest.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
PYTEST := $(BIN)/python -m pytest

.DEFAULT_GOAL := help
.PHONY: help install demo mlops serve test check fast format protos settings lock hashes audit load peers conformance clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z][a-z-]*:.*## / { printf "  make %-9s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("Kairos needs Python 3.11 or newer, not " + sys.version.split()[0]) if sys.version_info < (3, 11) else None'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing into $(VENV) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

install: $(READY) ## Make .venv with all a developer needs and the kairos command

demo: $(READY) ## Serve the example models and put real requests through them
	@$(BIN)/kairos demo

mlops: $(READY) ## A model's whole loop, from an alarm to its next version, in two minutes
	@$(BIN)/python examples/mlops/loop.py

serve: $(READY) ## Serve the example models until Ctrl-C
	@$(BIN)/kairos serve --model-repository examples/models

test: $(READY) ## Everything: style, types, layers, all tests
	@$(MAKE) --no-print-directory lint
	@if command -v go >/dev/null; then $(MAKE) --no-print-directory conformance; \
	 else echo "Without Go, the tests that run Go clients against the server are skipped."; fi
	@$(PYTEST)

check: $(READY) ## What to run before each commit: style, types, layers, fast tests
	@$(MAKE) --no-print-directory lint
	@$(MAKE) --no-print-directory fast

fast: $(READY) ## The tests that start no process
	@$(PYTEST) -q -m 'not integration'

.PHONY: lint
lint: $(READY)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo
	@$(BIN)/python protos/generate.py --check

format: $(READY) ## Let ruff put the code in shape
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

protos: $(READY) ## Generate server/pb from protos/
	@$(BIN)/python protos/generate.py

settings: $(READY) ## Write docs/settings.md from the declarations
	@$(BIN)/python docs/make_settings.py

lock: ## Write constraints.txt anew from what pyproject.toml resolves to today
	@rm -rf build/lock && $(PYTHON) -m venv build/lock
	@build/lock/bin/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@build/lock/bin/python -m pip freeze --exclude-editable > constraints.txt
	@$(MAKE) --no-print-directory hashes

UV      := build/uv/bin/uv
COMPILE := pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \
           --constraint constraints.txt

hashes: ## Write the images' locks with hashes from constraints.txt
	@test -x $(UV) || { $(PYTHON) -m venv build/uv && build/uv/bin/pip install --quiet --disable-pip-version-check 'uv>=0.9,<1'; }
	@$(UV) $(COMPILE) --extra sources --output-file deploy/docker/requirements.lock pyproject.toml
	@$(UV) $(COMPILE) --extra sources --extra gpu --output-file deploy/docker/requirements-gpu.lock pyproject.toml
	@echo 'setuptools>=77' | $(UV) $(COMPILE) --output-file deploy/docker/requirements-build.lock -

FUZZ_SECONDS ?= 600
.PHONY: fuzz
fuzz: $(READY) ## Feed mutated bytes to all that strangers can reach, FUZZ_SECONDS=600 for each target
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[fuzz]' || echo "Without atheris: mutations only."
	@$(BIN)/python -m tests.fuzz --seconds $(FUZZ_SECONDS)

.PHONY: soak
soak: $(READY) ## Mixed traffic for hours, memory watched; SOAK_SECONDS=14400
	@$(BIN)/python loadtest/soak.py --seconds $(or $(SOAK_SECONDS),14400) --out soak.json

load: $(READY) ## Load on a running server: make load SCENARIO=loadtest/scenarios/mixed.toml
	@$(BIN)/python -m loadtest run $(or $(SCENARIO),loadtest/scenarios/digits.toml) $(ARGS)

peers: $(READY) ## Measure Kairos beside its peers and write docs/performance.md (see loadtest/README.md)
	@$(BIN)/python -m loadtest.peers --write $(ARGS)

audit: ## Look for known vulnerabilities and for licences not allowed; ADVISORIES=PATH reads a copy of OSV's database
	@rm -rf build/audit && $(PYTHON) -m venv build/audit/tools
	@build/audit/tools/bin/pip install --quiet --disable-pip-version-check 'pip-audit>=2.10,<3' 'pip-licenses>=5.5,<6'
	@build/audit/tools/bin/python deploy/audit/audit.py build/audit $(ADVISORIES)

conformance: ## Build the tools that tests run into .tools (needs Go)
	@tests/conformance/install.sh
	@tests/deploy/install.sh
	@loadtest/ghz/install.sh

clean: ## Remove the environment and all caches
	@rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
