# make sweep: the main job on the embedded demo. make dashboard: a web page about its results. make test: all tests.
# Each sets up .venv first, once.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
# A machine with an NVIDIA GPU keeps the torch that pip finds for it; elsewhere it is the pinned CPU build.
CONSTRAINTS := $(if $(shell command -v nvidia-smi),,-c constraints.txt)
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet

.PHONY: sweep dashboard test check bench bench-train bench-pack bench-data bench-layers bench-search bench-eval \
	bench-scale clean

sweep: $(INSTALLED)
	$(BIN)/python jobs/sweep.py $(ARGS)

dashboard: $(INSTALLED)
	$(BIN)/vrray dashboard --store runs $(ARGS)

test: $(INSTALLED)
	$(BIN)/python -m pytest -n 2 $(ARGS)

check: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: bench-train bench-pack bench-data bench-layers bench-search bench-eval

bench-train: $(INSTALLED)
	$(BIN)/python -m benchmarks.training $(ARGS)

bench-pack: $(INSTALLED)
	$(BIN)/python -m benchmarks.packing $(ARGS)

bench-data: $(INSTALLED)
	$(BIN)/python -m benchmarks.data $(ARGS)

bench-layers: $(INSTALLED)
	$(BIN)/python -m benchmarks.scores $(ARGS)
	$(BIN)/python -m benchmarks.decoder

bench-eval: $(INSTALLED)
	$(BIN)/python -m benchmarks.evaluation $(ARGS)

bench-scale: $(INSTALLED)
	$(BIN)/python -m benchmarks.scale $(ARGS)

bench-search: $(INSTALLED)
	$(BIN)/python -m benchmarks.search $(ARGS)

$(INSTALLED): pyproject.toml constraints.txt requirements-demo.txt
	@echo "setting up $(VENV) (once; some minutes)"
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) install $(CONSTRAINTS) torch
	@$(PIP) install $(CONSTRAINTS) -e ".[dashboard,demo,dev]"
	@$(PIP) install --no-deps -r requirements-demo.txt
	@touch $@

clean:
	rm -rf $(VENV) runs
