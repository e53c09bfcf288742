# `make simulate` runs the main job, `make test` what CI runs. Both set up .venv first.
#
# TORCH_INDEX: extra package index to take torch and torchvision from, for instance PyTorch's
# CPU wheels, which are about ten times smaller than the default (CUDA) ones:
#   make simulate TORCH_INDEX=https://download.pytorch.org/whl/cpu
PYTHON ?= python3
TORCH_INDEX ?=
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

# Two processes, each with one thread, for two cores.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

.PHONY: simulate test test-slow integration lint audit docs clean

simulate: $(VENV)/.installed
	$(BIN)/codream-secure simulate --clients 10 --dp-eps 8

test: lint
	$(BIN)/python -m pip check
	$(PYTEST)
	$(BIN)/python -m pytest tests/codream_secure/flower/test_sums_processes.py -m integration -k short

integration: $(VENV)/.installed-test
	$(BIN)/python -m pytest -m integration

test-slow: $(VENV)/.installed-test
	$(BIN)/python -m pytest -m slow

# The lower bounds of pyproject.toml, in an environment of its own. Not Flower's: what it needs is
# newer than most of them. A warning of an old library is no fault of ours.
test-oldest: $(VENV)/.installed-test
	$(BIN)/uv venv --clear --quiet --python $(BIN)/python $(OLDEST)
	$(BIN)/uv pip install --quiet --python $(OLDEST) --resolution lowest-direct \
		$(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) --editable '.[test,audit]'
	$(BIN)/uv pip list --python $(OLDEST)
	OMP_NUM_THREADS=1 $(OLDEST)/bin/python -m pytest -n 2 --dist worksteal -W default \
		--ignore tests/codream_secure/flower --ignore tests/test_documents.py --ignore tests/test_wheel.py

audit: $(VENV)/.installed-test
	HYPOTHESIS_PROFILE=audit $(BIN)/python -m pytest tests/protocols -m ""
	$(BIN)/python -m pytest tests/codream_secure/sites tests/codream_secure/audit/test_differences.py \
		tests/codream_secure/flower/test_carrier.py tests/codream_secure/flower/test_mean.py \
		tests/codream_secure/flower/test_secure_mod.py -m ""
	$(BIN)/python tests/protocols/mutations.py

docs: $(VENV)/.installed
	$(BIN)/python -m mkdocs --version >/dev/null 2>&1 || $(PIP) --editable '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet
	@echo written to build/site; open build/site/index.html

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit("codream-secure needs Python 3.11 or newer; name one with make PYTHON=python3.12") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)
	$(PIP) --upgrade pip

$(VENV)/.installed: pyproject.toml | $(VENV)/bin/python
ifneq ($(TORCH_INDEX),)
	$(PIP) --index-url $(TORCH_INDEX) torch torchvision
endif
	$(PIP) --editable .
	touch $@

$(VENV)/.installed-test: pyproject.toml | $(VENV)/.installed
	$(PIP) --editable '.[test,audit,flower]'
	touch $@

clean:
	rm -rf $(VENV) $(OLDEST) build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
