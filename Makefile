# `make demo` and `make test` are the whole set-up; both build .venv on first use.
PYTHON ?= python3
VENV ?= .venv
RUN := $(VENV)/bin/python

.PHONY: demo test lint bench evidence clean

$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[tasks,test]"
	touch $@

demo: $(VENV)/.ready
	$(RUN) -m thalweg demo

test: $(VENV)/.ready
	$(RUN) -m pytest -n 2 --dist worksteal

lint: $(VENV)/.ready
	$(VENV)/bin/ruff check src tests benchmarks
	$(VENV)/bin/ruff format --check src tests benchmarks
	$(VENV)/bin/mypy

bench: $(VENV)/.ready
	$(RUN) -m benchmarks

evidence: $(VENV)/.ready
	$(RUN) -m thalweg study run --all

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache runs
