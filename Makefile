# All targets set up a .venv with the pinned packages first, so they work in a fresh clone.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
DEMO ?= demo
STAMP := $(VENV)/.installed
PYTEST_WORKERS ?= 2

.PHONY: help install demo test test-long lint bench docs clean

help:
	@echo "make demo       make synthetic CTs, train, evaluate, predict (about 5 minutes on two CPU cores)"
	@echo "make test       check style and types, and run the tests"
	@echo "make test-long  run the tests that take minutes"
	@echo "make bench      benchmark fusionseg against other training recipes; DATA=folder takes your data set"
	@echo "make docs       build the documentation as a site: open site/index.html"
	@echo "make install    set up .venv"
	@echo "make clean      remove .venv and caches"

install: $(STAMP)

# Install the pinned torch first, so that no later package installs another build of it.
$(STAMP): setup.cfg constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "fusionseg needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version). Use: make $(MAKECMDGOALS) PYTHON=python3.11"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,docs,formats,export]'
	@touch $@

demo: $(STAMP)
	PYTHON=$(BIN)/python bash launch/demo.sh $(DEMO)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	$(BIN)/python -m pytest -n $(PYTEST_WORKERS) --dist worksteal -m "not long" $(PYTEST_ARGS)

test-long: $(STAMP)
	$(BIN)/python -m pytest -m long $(PYTEST_ARGS)

# A short form of the benchmark, about six minutes on two CPU cores. See python profiling/benchmark.py --help.
bench: $(STAMP)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[bench]'
	$(BIN)/python profiling/benchmark.py $(if $(DATA),--data $(DATA)) --networks unet --rounds 6 $(BENCH_ARGS)
	$(BIN)/python profiling/benchmark.py $(if $(DATA),--data $(DATA)) --networks swin_unetr --rounds 2 --recipes monai_fast \
	  --cases step epoch $(BENCH_ARGS)
	$(BIN)/python profiling/benchmark_augmentation.py $(if $(DATA),--data $(DATA)) --rounds 3 --steps 6

# A broken link or a page that is not in the navigation fails the build. The variable hides an advertisement.
docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet
	@echo "open site/index.html"

clean:
	rm -rf $(VENV) site *.egg-info .pytest_cache .mypy_cache .ruff_cache
