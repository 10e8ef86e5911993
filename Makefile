# Everything a user or developer runs, by a short name. `make demo` and `make test` do all their own set-up.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
DEMO   ?= output/demo
# The pinned environment has a CPU build of torch, so its operators need no GPU code; `make kernels` compiles that.
OPENREC_BUILD ?= cpu
export OPENREC_BUILD

.PHONY: help demo test test-slow docs kernels lint format clean

help:            ## show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:[^#]*## /\t/' | expand -t 14

CSRC := $(wildcard csrc/*.cpp csrc/*.h csrc/*/*.cpp csrc/*/*.h)

$(VENV)/.ready: requirements/pinned.txt pyproject.toml setup.py $(CSRC)
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(v < (3, 10) and f"openrec needs Python >= 3.10, {sys.executable} is {v[0]}.{v[1]}. Try: make PYTHON=python3.11 $(MAKECMDGOALS)" or 0)'
	@$(PYTHON) -m venv $(VENV) || { echo "No virtual environment could be made. On Debian or Ubuntu: apt-get install python3-venv"; exit 1; }
	$(BIN)/python -m pip install -q --disable-pip-version-check -r requirements/pinned.txt
	$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

demo: $(VENV)/.ready  ## render words, train a small SVTRv2Mamba on them, read held-out words
	$(BIN)/python tools/demo.py --output $(DEMO)

test: $(VENV)/.ready  ## the default test suite
	$(BIN)/python -m pytest -n 2 -m "not slow"

test-slow: $(VENV)/.ready  ## the longer tests too
	$(BIN)/python -m pytest -n 2 -m slow

docs: $(VENV)/.ready  ## the documentation as a web site in build/site
	$(BIN)/python -m pip install -q --disable-pip-version-check -e '.[docs]' --no-build-isolation
	$(BIN)/python docs/gen_config.py
	$(BIN)/mkdocs build -q
	@echo "open build/site/index.html"

kernels:         ## compile the CUDA kernels for all architectures, spills are errors (needs nvcc, no GPU)
	$(PYTHON) .ci/compile_kernels

lint: $(VENV)/.ready  ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.ready  ## rewrite the code in the house style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:           ## remove the environment and all outputs
	rm -rf $(VENV) build dist *.egg-info output .pytest_cache .mypy_cache .ruff_cache
