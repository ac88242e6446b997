# Every target makes the environment it needs first: a fresh machine has Python 3.10 or later, and make.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip install --disable-pip-version-check --quiet --constraint constraints.txt

.DEFAULT_GOAL := help
.PHONY: help demo test lint types layers check bench bench-store bench-tables clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 22

demo: $(VENV)/installed ## install, then train a small GPT on Python's own source at 40% of eager's memory
	$(BIN)/python -m gradbase train examples/gpt_stdlib.py --memory 40% --steps 40 --compare-eager

test: check ## install for development, then run the linters, the type checker and the tests
	$(BIN)/python -m pytest --numprocesses auto --dist loadfile

check: lint types layers ## ruff, mypy and import-linter alone

lint: $(VENV)/developing
	$(BIN)/ruff check .

types: $(VENV)/developing
	$(BIN)/mypy

layers: $(VENV)/developing
	$(BIN)/lint-imports

bench: $(VENV)/developing ## measure gradbase beside its peers; ARGS="--workloads gpt2 --rounds 3" narrows it
	$(BIN)/python -m benchmarks.run $(ARGS)

STORE_BENCHMARKS := efficiency transport durability sparse codecs simulate
bench-store: $(VENV)/developing ## measure the parameter store beside its peers, one benchmark after the other
	for name in $(STORE_BENCHMARKS); do $(BIN)/python -m benchmarks.store.$$name || exit 1; done

bench-tables: $(VENV)/developing ## measure the models over tables; DATA=DIR names the folder of the public sets
	@test -n "$(DATA)" || { echo 'make: name the folder of the data sets: make bench-tables DATA=DIR'; exit 1; }
	$(BIN)/python -m benchmarks.tables.crowd --data "$(DATA)"
	$(BIN)/python -m benchmarks.tables.fuse --data "$(DATA)"
	$(BIN)/python -m benchmarks.tables.match --data "$(DATA)/er"

clean: ## remove the environment and every cache
	rm -rf $(VENV) .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo 'make: Python 3.10 or later is needed; name it with PYTHON=/path/to/python3'; exit 1; }
	$(PYTHON) -m venv $(VENV)

# torch goes first, so that nothing installed later can choose another build of it.
$(VENV)/installed: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) torch
	$(PIP) --editable .
	@touch $@

$(VENV)/developing: $(VENV)/installed
	$(PIP) --editable '.[dev,tables,postgres,store,ray,transformers,peers]'
	@touch $@
