# `make help` lists the commands. Each one sets up what it needs in .venv on
# its first run, again when pyproject.toml or the pinned versions change.

PYTHON ?= python3
VENV ?= .venv
KERAS_BACKEND ?= tensorflow
TF_CPP_MIN_LOG_LEVEL ?= 2
export KERAS_BACKEND TF_CPP_MIN_LOG_LEVEL

# Prepared data sets beside the checkout are used where they exist.
ifndef TFDS_DATA_DIR
ifneq ($(wildcard ../shared/data/tensorflow_datasets),)
export TFDS_DATA_DIR := $(abspath ../shared/data/tensorflow_datasets)
endif
endif

BACKENDS := tensorflow jax torch
# Options for pytest, such as PYTEST_ARGS="-k graph -x".
PYTEST_ARGS ?=
# Options for pip when it installs PyTorch, such as an index of CPU builds.
TORCH_FLAGS ?=

PINS := requirements-test.txt
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet \
	--constraint $(PINS)
PYTEST := $(BIN)/python -m pytest -n 2

# Stamp files, each made when its set-up is complete.
CREATED := $(VENV)/.created
DEMO := $(VENV)/.demo
TEST := $(VENV)/.test
LINT := $(VENV)/.lint
DOCS := $(VENV)/.docs

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help demo test test-slow lint format docs clean \
	$(BACKENDS:%=test-%) $(BACKENDS:%=test-slow-%)

help:
	@echo "make demo             train LeNet on MNIST and morph it (examples/mnist_lenet.py)"
	@echo "make test             all quick tests, on TensorFlow, JAX and PyTorch"
	@echo "make test-tensorflow  the same on one backend; also test-jax, test-torch"
	@echo "make test-slow        the slow tests, on all backends; also test-slow-jax, ..."
	@echo "make lint             ruff check, ruff format --check, mypy"
	@echo "make format           let ruff sort the imports and format the code"
	@echo "make docs             the API reference, as build/docs/index.html"
	@echo "make clean            remove the environment, caches and outputs"
	@echo "Options: KERAS_BACKEND=jax (demo), PYTEST_ARGS=\"-k graph -x\" (tests)"

$(CREATED):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed: make PYTHON=python3.12 ..."; exit 1; }
	@echo "== Creating $(VENV)"
	@$(PYTHON) -m venv $(VENV)
	@touch $@

# The demo needs TensorFlow only. Other backends use the test set-up.
$(DEMO): pyproject.toml $(PINS) $(CREATED)
	@echo "== Installing TensorFlow and data tools (some minutes, once)"
	@$(PIP) --editable ".[tensorflow,data,plot]"
	@touch $@

# PyTorch comes first and by itself, so that its build is the one asked for.
$(TEST): $(DEMO)
	@echo "== Installing PyTorch, JAX and test tools (some minutes, once)"
	@$(PIP) $(TORCH_FLAGS) torch
	@$(PIP) --editable ".[tensorflow,jax,torch,cv,data,export,plot,test]"
	@touch $@

$(LINT): pyproject.toml $(PINS) $(CREATED)
	@echo "== Installing ruff and mypy"
	@$(PIP) mypy numpy ruff
	@touch $@

$(DOCS): $(DEMO)
	@echo "== Installing pdoc and notebook tools"
	@$(PIP) --editable ".[tensorflow,docs]"
	@touch $@

demo: $(if $(filter tensorflow,$(KERAS_BACKEND)),$(DEMO),$(TEST))
	$(BIN)/python examples/mnist_lenet.py

# Runs the target $(1)-BACKEND for every backend; fails if any has failed.
define on_all_backends
@failed=""; \
for backend in $(BACKENDS); do \
	$(MAKE) --no-print-directory $(1)-$$backend || failed="$$failed $$backend"; \
done; \
if [ -n "$$failed" ]; then echo "== FAILED on:$$failed"; exit 1; fi; \
echo "== Passed on: $(BACKENDS)"
endef

test: $(TEST)
	$(call on_all_backends,test)

test-slow: $(TEST)
	$(call on_all_backends,test-slow)

$(BACKENDS:%=test-%): test-%: $(TEST)
	@echo "== Tests on $*"
	@KERAS_BACKEND=$* $(PYTEST) -m "not slow" $(PYTEST_ARGS)

$(BACKENDS:%=test-slow-%): test-slow-%: $(TEST)
	@echo "== Slow tests on $*"
	@KERAS_BACKEND=$* HYPOTHESIS_PROFILE=slow $(PYTEST) -m slow $(PYTEST_ARGS)

lint: $(LINT)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(LINT)
	$(BIN)/ruff check --select I --fix .
	$(BIN)/ruff format .

docs: $(DOCS)
	KERAS_BACKEND=tensorflow $(BIN)/python docs/build.py

clean:
	rm -rf $(VENV) outputs build dist .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
