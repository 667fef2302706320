# Everything runs in .venv, which is made on first use and refreshed when pyproject.toml changes.
#
#   make demo    train a sparse autoencoder on photographs and draw what it learned
#   make test    lint, type check, tests, doctests and examples: what CI runs, in PROCESSES=2 processes
#                (CI adds INSTALL_GROUPS="dev torch": the tests that need PyTorch, which takes gigabytes)
#   make lint    the first two only
#   make soak    the tests that take minutes: every float32 there is, say
#   make bench   evaluations, predictions and the CS294A exercise beside other libraries; start, threads, memory, growth; files, clusters
#   make lowest  the tests against the lowest versions that pyproject.toml admits (tests/lowest.txt)
#   make clean   remove what the other targets wrote, except .venv, .venv-lowest and .venv-bench

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO_ARGS ?=
PYTEST_ARGS ?=
PROCESSES ?= 2
INSTALL_GROUPS ?= dev

.PHONY: demo test lint soak bench lowest clean

demo: $(VENV)/.demo-installed
	$(BIN)/python -m mlpkit demo $(DEMO_ARGS)

test: lint
	@# Compile the kernels into Numba's cache once, rather than in every process the tests start.
	$(BIN)/python -m mlpkit warmup --dtype float32 & $(BIN)/python -m mlpkit warmup --dtype float64 && wait $$!
	$(BIN)/python -m pytest --numprocesses $(PROCESSES) $(PYTEST_ARGS)

lint: $(VENV)/.dev-installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy mlpkit

soak: $(VENV)/.dev-installed
	$(BIN)/python -m pytest -m soak $(PYTEST_ARGS)

# Each of them can be run by itself, with options: $(VENV)-bench/bin/python benchmarks/NAME.py --help
bench: $(VENV)-bench/.installed
	$(VENV)-bench/bin/python benchmarks/evaluations.py
	$(VENV)-bench/bin/python benchmarks/cs294a_exercise.py
	$(VENV)-bench/bin/python benchmarks/limits.py
	$(VENV)-bench/bin/python benchmarks/optimizers.py
	$(VENV)-bench/bin/python benchmarks/newton.py
	$(VENV)-bench/bin/python benchmarks/model_files.py
	$(VENV)-bench/bin/python benchmarks/training.py
	$(VENV)-bench/bin/python benchmarks/out_of_core.py

# The libraries that mlpkit is compared with stay out of the environment that the tests run in.
$(VENV)-bench/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)-bench
	$(VENV)-bench/bin/python -m pip install --quiet --upgrade "pip>=25.1"
	$(VENV)-bench/bin/python -m pip install --quiet --editable ".[images]" --group bench
	touch $@

# Lowest versions share neither the environment nor the kernel cache with the rest. The libraries that mlpkit converts
# from and to set lowest versions of their own, so those tests are left out.
lowest:
	$(PYTHON) -m venv $(VENV)-lowest
	$(VENV)-lowest/bin/python -m pip install --quiet --upgrade "pip>=25.1"
	$(VENV)-lowest/bin/python -m pip install --quiet --editable ".[examples]" --group test --constraint tests/lowest.txt
	NUMBA_CACHE_DIR=$(VENV)-lowest/kernels $(VENV)-lowest/bin/python -m pytest --ignore tests/interop --ignore mlpkit/interop $(PYTEST_ARGS)

clean:
	rm -rf build dist mlpkit-demo benchmarks/results .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . \( -path ./$(VENV) -o -path ./$(VENV)-lowest -o -path ./$(VENV)-bench \) -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo-installed: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable ".[demo]"
	touch $@

# Dependency groups (PEP 735) need pip 25.1, which is newer than the pip of many a Python.
$(VENV)/.dev-installed: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --quiet --editable ".[examples]" $(INSTALL_GROUPS:%=--group %)
	touch $@ $(VENV)/.demo-installed
