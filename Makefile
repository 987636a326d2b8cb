# Every target makes what it needs; nothing is redone when it is there.
VENV   := .venv
PYTHON ?= python3
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready

.PHONY: setup run test lint bench bench-maps methods clean
.DEFAULT_GOAL := run

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[models,sentence-transformers,dask,services,dev]'
	touch $@

run: $(READY)
	$(BIN)/suture run

test: $(READY)
	$(BIN)/python -m pytest

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(READY)
	env -u OPENBLAS_CORETYPE $(BIN)/python -m benchmarks.quickstart

bench-maps: $(READY)
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[bench]'
	$(BIN)/python -m benchmarks.maps
	$(BIN)/python -m benchmarks.measures

methods: $(READY)
	$(BIN)/python -m benchmarks.methods --out docs/methods.md

clean:
	rm -rf $(VENV)
