# `make demo` and `make test` are all a newcomer needs: each makes the environment first if it is missing.
PYTHON ?= $(firstword $(foreach p,python3.11 python3.12 python3.13 python3 python,$(shell command -v $(p) 2>/dev/null)))
# EXTRAS=dev,torch adds PyTorch, and with it the tests of what bridges to it.
EXTRAS ?= dev
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# Tests of a file or a group share programs, and run on one worker; the budgets of programs are those of two workers.
PARALLEL := -n auto --dist loadgroup

.PHONY: demo test test-all test-slow studies lint format bench bench-quick docs package clean help

help:
	@echo "make demo       four optimizers against their SDEs, on a quadratic and on real data; writes demo/index.html"
	@echo "make test       every feature, every error and every reference once: before each commit"
	@echo "make test-all   make test, and what takes longer: before each push"
	@echo "make studies    coverage of limits, weak orders at full precision, many kills: before each release; writes docs/test-studies.md"
	@echo "make docs       the documentation as a site, tutorials executed; writes site/"
	@echo "make package    wheel and source archive, in dist/; the wheel is installed apart and tried"
	@echo "make lint       formatting, docstrings, types, layers"
	@echo "make format     mend what can be mended of the formatting"
	@echo "make bench      speed against diffrax, torchsde and PyTorch; writes bench/ (make bench-quick: to see that it runs)"

demo: $(READY)
	$(BIN)/python examples/demo.py

test: $(READY)
	$(BIN)/pytest $(PARALLEL) -m "not slow and not study" --max-programs 5700

test-all: test test-slow

test-slow: $(READY)
	$(BIN)/pytest $(PARALLEL) -m slow --max-programs 2900

studies: $(READY)
	$(BIN)/pytest $(PARALLEL) -m study --studies-page docs/test-studies.md

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

# Wheel and source archive, and whether the wheel has all that the library needs: it is installed apart and used.
package: $(READY)
	rm -rf dist build/installed
	$(BIN)/python -m build --outdir dist
	$(BIN)/pip install --quiet --no-deps --target build/installed dist/*.whl
	cd build/installed && PYTHONPATH=. $(CURDIR)/$(BIN)/python $(CURDIR)/examples/installed.py

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
