# make setup | run | test | check | shipped | clean
# PYTHON chooses the interpreter (3.10 or newer); PIP_TORCH adds options to the installation of torch, for example
#   make setup PIP_TORCH="--index-url https://download.pytorch.org/whl/cpu"

PYTHON ?= python3
PIP_TORCH ?=
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --constraint constraints.txt
STAMP := .venv/.installed
# A process holds torch and Triton, about 1.5 GB: not one for every core of a large machine.
TEST_JOBS ?= 2
PYTEST := $(BIN)/python -m pytest --numprocesses $(TEST_JOBS) --dist loadfile
# The oldest supported transformers beside the newest of constraints.txt, for the tests that depend on it.
OLDEST := .venv/transformers-oldest
OLDEST_LIST := tests/compiler/transformers-oldest.txt
TEST_OLDEST := PAITON_TEST_TRANSFORMERS=5.17.0 PYTHONPATH=$(CURDIR)/$(OLDEST) $(PYTEST) tests/compiler \
	-m transformers_versions

.PHONY: setup run test check shipped clean

setup: $(STAMP)

# torch comes first and alone, so that PIP_TORCH touches nothing else; a CPU build of torch does not bring triton,
# whose compiler is needed on every machine. The link .types/paiton gives the root folder its package name for mypy.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(PIP) $(PIP_TORCH) torch
	$(PIP) triton setuptools
	$(PIP) --no-build-isolation --editable '.[test,dev,hf]'
	mkdir -p .types && ln -sfn .. .types/paiton
	touch $(STAMP)

$(OLDEST)/.installed: $(STAMP) $(OLDEST_LIST)
	rm -rf $(OLDEST)
	$(BIN)/python -m pip install --no-deps --target $(OLDEST) --requirement $(OLDEST_LIST)
	touch $@

run: setup
	$(BIN)/autotune run --arch gfx942 --model Qwen3-30B-A3B

test: setup $(OLDEST)/.installed
	$(PYTEST)
	$(TEST_OLDEST)

check: setup $(OLDEST)/.installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(PYTEST)
	$(TEST_OLDEST)

# The databases in the wheel, one for a device: make shipped ARCH=gfx942 DEVICE=MI300X
ARCH ?= gfx942
DEVICE ?= MI300X
SHIPPED_TRIALS ?= 4
SHIPPED_MODELS := Qwen3-30B-A3B Qwen3-32B QwQ-32B

shipped: setup
	mkdir -p build
	set -e; for model in $(SHIPPED_MODELS); do for tp in 1 2 4 8; do \
	  $(BIN)/autotune run --arch $(ARCH) --device $(DEVICE) --model $$model --tp $$tp --trials $(SHIPPED_TRIALS) \
	    --db build/shipped-$(DEVICE).db; \
	done; done
	$(BIN)/autotune export --db build/shipped-$(DEVICE).db --device $(DEVICE) --licence Apache-2.0 \
	  --out cache/shipped/$(ARCH)-$(DEVICE).db
	$(BIN)/autotune verify cache/shipped/$(ARCH)-$(DEVICE).db

clean:
	rm -rf .venv .types build *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
