# `make demo` and `make test` need nothing but Python 3.11 to 3.13 and a network for the downloads.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
BENCH := build/bench
# exactly this release, so that a CPU build of it is taken where pip finds one (PIP_FIND_LINKS,
# PIP_EXTRA_INDEX_URL); the package index alone gives the CUDA build
TORCH := torch==2.13.0
export HF_HUB_OFFLINE ?= 1
export OMP_WAIT_POLICY ?= PASSIVE
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: install demo app test test-core check docs format bench matrix clean

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; assert (3, 11) <= sys.version_info < (3, 14), "actkit needs Python 3.11 to 3.13"'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt "$(TORCH)"
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[all,docs,dev]"
	touch $@

demo: install
	$(BIN)/actkit demo --out runs/demo

app: install
	$(BIN)/panel serve app/ --address 127.0.0.1 --port 5006 --num-threads 4 --warm

test: install
	$(BIN)/pytest --numprocesses auto --maxprocesses 4 --dist worksteal

# what a user of the core alone has: no torch, no app, no notebook
test-core: build/core/.installed
	build/core/bin/python tests/core_alone.py

build/core/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv build/core
	build/core/bin/pip install --quiet --constraint constraints.txt --editable .
	touch $@

check: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: install
	$(BIN)/sphinx-build --fail-on-warning --quiet --builder html docs build/docs

format: install
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(BENCH)/.installed
	$(BENCH)/bin/python -m benchmarks

# not in $(VENV): what the peers bring along would change the tests, pytest plugins among it
$(BENCH)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(BENCH)
	$(BENCH)/bin/pip install --quiet --constraint constraints.txt "$(TORCH)"
	$(BENCH)/bin/pip install --quiet --constraint constraints.txt --editable ".[app,extract,bench]"
	touch $@

matrix: install
	$(BIN)/python -m tests.models.matrix

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
