# `make demo` and `make test` set everything up by themselves, once; and again when pyproject.toml or
# constraints.txt changes. `make PYTHON=python3.12 ...` chooses the interpreter of a new .venv.

PYTHON = python3
JOBS = 2
IMAGES =
MARK = not slow
TESTS =
SMALL =
OUT ?= accelerator

# Paths are relative, so the checkout may lie under a path with spaces.
RUN = .venv/bin/python
READY = .venv/ready

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-11s %s\n", $$1, $$2 }' Makefile

demo: $(READY)  ## write the demonstration, demo/report.html; IMAGES=folder shows your own images
	$(RUN) -m examples.demo --out demo $${IMAGES:+--images "$$IMAGES"}

test: $(READY)  ## run the fast tests; TESTS="tests/weights -k zip" selects some, MARK=slow the slow ones, JOBS=4 uses more processes
	$(RUN) -m pytest -n $(JOBS) -m '$(MARK)' $(TESTS)

accelerator: $(READY)  ## check and measure on this machine's GPU or TPU, 8 minutes, into OUT=folder; SMALL=1 proves it on a CPU
	$(RUN) -m benchmarks.accelerator --out "$(OUT)" $(if $(SMALL),--small)

lint: $(READY)  ## check style and formatting
	$(RUN) -m ruff check
	$(RUN) -m ruff format --check

format: $(READY)  ## format the code and fix what can be fixed
	$(RUN) -m ruff check --fix
	$(RUN) -m ruff format

types: $(READY)  ## check types
	$(RUN) -m pyright --warnings --pythonpath $(RUN)

docs: $(READY)  ## build the documentation into site/, where index.html works without a server
	NO_MKDOCS_2_WARNING=1 $(RUN) -m mkdocs build --strict

wheel: $(READY)  ## build the source distribution, and the wheel from it, into dist/
	$(RUN) -m build --no-isolation

clean:  ## remove the environment, builds, caches, the demonstration and the site
	rm -rf .venv accelerator build demo dist site .hypothesis .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

setup: $(READY)  ## only set up .venv

# pip is absent from an environment whose creation was interrupted, or whose Python is gone: made anew.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, this is " \
		+ sys.version.split()[0] + "; choose another with: make PYTHON=python3.12 ...")'
	@echo "Setting up .venv; this takes a minute or two, once."
	@$(RUN) -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear .venv
	$(RUN) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt hatchling setuptools
	$(RUN) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt \
		--no-build-isolation --editable '.[dev]'
	@touch $(READY)

.PHONY: help demo test lint format types docs wheel clean setup
