# `make demo` and `make test` are all a newcomer needs: each makes the environment first if it is missing.
PYTHON ?= $(firstword $(foreach p,python3.11 python3.12 python3.13 python3 python,$(shell command -v $(p) 2>/dev/null)))
# EXTRAS=dev,torch adds PyTorch, and with it the tests of what bridges to it.
EXTRAS ?= dev
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test test-fast test-slow lint format bench bench-quick docs clean help

help:
	@echo "make demo       four optimizers against their SDEs, on a quadratic and on real data; writes demo/index.html"
	@echo "make test       all tests (make test-fast, make test-slow: the parts)"
	@echo "make docs       the documentation as a site, tutorials executed; writes site/"
	@echo "make lint       formatting, docstrings, types, layers"
	@echo "make format     mend what can be mended of the formatting"
	@echo "make bench      speed against diffrax, torchsde and PyTorch; writes bench/ (make bench-quick: to see that it runs)"

demo: $(READY)
	$(BIN)/python examples/demo.py

test: test-fast test-slow

test-fast: $(READY)
	$(BIN)/pytest -n auto --dist loadgroup -m "not slow"

test-slow: $(READY)
	$(BIN)/pytest -n auto --dist worksteal -m slow

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.bench
	$(BIN)/python -m benchmarks --out bench

bench-quick: $(VENV)/.bench
	$(BIN)/python -m benchmarks --quick --out bench

docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

clean:
	rm -rf $(VENV) demo bench site build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache

$(READY): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "No Python was found; install Python 3.11 or newer." >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "$(PYTHON) is older than 3.11; use make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || \
		{ rm -rf $(VENV); echo "The venv module is missing; on Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[$(EXTRAS)]"
	@touch $(READY)

# What the benchmarks compare with.
$(VENV)/.bench: $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[bench]"
	@touch $@

# What the site is made with, and what its tutorials use.
$(VENV)/.docs: $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[docs]"
	@touch $@
