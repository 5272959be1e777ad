# Each target installs what it needs into .venv first: `make demo` and `make test` are all it takes.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test test-oldest lint format docs notebooks benchmark clean

demo: $(VENV)/.demo
	MPLBACKEND=Agg $(BIN)/python tutorials/quickstart.py

# Two processes of one thread: more threads do not make such small products faster.
test: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist worksteal

# What the lowest versions of all dependencies change, in an environment of its own. There, warnings
# of later ones are not errors, and torch.compile knows less of Python.
OLDEST := .venv-oldest
test-oldest: $(OLDEST)/.dev
	OMP_NUM_THREADS=1 $(OLDEST)/bin/python -m pytest -q -n 2 --dist worksteal -W default \
		tests/conditioning tests/evidence tests/flows tests/mixtures

$(OLDEST)/.dev: pyproject.toml oldest.txt
	$(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/python -m pip install --quiet --disable-pip-version-check \
		--constraint oldest.txt --editable ".[dev]"
	touch $@

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/.docs
	$(BIN)/sphinx-build -W --keep-going -b html docs docs/_build/html

# The notebooks are made from the scripts beside them, and executed.
notebooks: $(VENV)/.docs
	$(BIN)/python tutorials/make_notebooks.py

benchmark: $(VENV)/.benchmarks
	$(BIN)/python -m benchmarks

clean:
	rm -rf $(VENV) $(OLDEST) out docs/_build docs/api docs/tutorials

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# One stamp per extra of pyproject.toml.
$(VENV)/.%: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
		--constraint constraints.txt --editable ".[$*]"
	touch $@
