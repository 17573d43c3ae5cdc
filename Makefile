# `make demo` and `make test` need Python 3.11 or later, make, and a package index; everything else they set up.
#
#   make demo PYTHON=python3.12   another interpreter
#   make demo TORCH=cpu           PyTorch's CPU-only build, without CUDA; after another build, make clean first
#
# Once installed, the demo trains for at most two minutes on any processor, and the tests take at most ten minutes on two
# cores with AVX2 (benchmarks/first_steps.py).

PYTHON ?= python3
TORCH ?=
UV_VERSION := 0.13.9

ifeq ($(OS),Windows_NT)
BIN := .venv/Scripts
else
BIN := .venv/bin
endif

UV := $(BIN)/uv
INSTALLED := .venv/installed$(if $(TORCH),-$(TORCH))

# PyTorch's own files, compiled by Python anew at each start, take seconds.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test test-all test-browser test-formats test-examples docs release-check lint requirements clean

demo: $(INSTALLED)
	$(BIN)/carnet demo

test: lint
	$(BIN)/python -m pytest -n auto -m "not slow"

test-all: lint
	$(BIN)/python -m pytest -n auto

# Pages in a real browser: Chromium or Chrome, wherever it is installed, or the one that CARNET_CHROMIUM names. And the
# service, fuzzed from its own description.
test-browser: $(INSTALLED)
	$(UV) pip install --python $(BIN)/python --quiet --constraint requirements.txt --editable ".[dev,browser]"
	$(BIN)/python -m pytest tests/browser tests/server/test_fuzzed.py

# Examples for Weights & Biases, MLflow and Ray, offline and on this machine.
test-examples: $(INSTALLED)
	$(UV) pip install --python $(BIN)/python --quiet --constraint requirements.txt --editable ".[dev,examples]"
	$(BIN)/python -m pytest tests/examples

# What is uploaded, used in clean environments.
release-check: $(INSTALLED)
	$(BIN)/python tools/release_check.py $(if $(TORCH),--torch-backend $(TORCH)) $(RELEASE)

# The documentation site, strictly: a warning, or a link that leads nowhere, is an error.
docs: $(INSTALLED)
	$(UV) pip install --python $(BIN)/python --quiet --constraint requirements.txt --editable ".[dev,docs]"
	$(BIN)/python docs/site/build.py build/site
	$(BIN)/python -m pytest tests/site

# Every converter of docs/deploy.md, each in an environment of its own under .formats: gigabytes, and minutes.
test-formats: $(INSTALLED) .formats/demo/run/result.json
	$(BIN)/python benchmarks/formats.py .formats/demo/run $(if $(TORCH),--torch-backend $(TORCH))
	$(UV) pip install --quiet --python .formats/ncnn/$(notdir $(BIN))/python pytest pytest-xdist hypothesis scipy timm
	.formats/ncnn/$(notdir $(BIN))/python -m pytest tests/export/test_formats.py

.formats/demo/run/result.json: | $(INSTALLED)
	$(PYTHON) -c "import shutil; shutil.rmtree('.formats/demo', ignore_errors=True)"
	$(BIN)/carnet demo --output .formats/demo

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The pinned file constrains versions instead of listing what to install, so that one file serves every system and
# every build of PyTorch: the CPU-only one simply asks for none of the CUDA packages.
$(INSTALLED): pyproject.toml requirements.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)
	$(UV) pip install --python $(BIN)/python $(if $(TORCH),--torch-backend=$(TORCH)) --constraint requirements.txt --editable ".[dev]"
	$(BIN)/python -c "open('$@', 'w').close()"

# Pin anew, for every system and Python version at once.
requirements: $(INSTALLED)
	$(UV) pip compile --universal --python-version 3.11 --all-extras --no-annotate --no-header --upgrade \
		pyproject.toml --output-file requirements.txt

clean:
	$(PYTHON) -c "import shutil; [shutil.rmtree(folder, ignore_errors=True) for folder in ('.venv', '.formats', 'build', 'dist')]"
