# The two commands: `make demo` and `make test`. Everything else is for developers.
PYTHON ?= $(shell .ci/python)
VENV   ?= .venv
BIN    := $(VENV)/bin
# test processes: tests wait for real daemons more than they compute
WORKERS ?= 3

.PHONY: demo test lint format unit lock slurm wheelhouse clean help

help:
	@echo "make demo   the whole suite on this machine, walked by real requests"
	@echo "make test   install what the tests need and run all of them"
	@echo "make lint   ruff and mypy;  make unit  the fast tests;  make lock  renew the lock files"

demo: $(VENV)/runtime.stamp
	@$(BIN)/edged demo

test: $(VENV)/test.stamp
	@.ci/packages
	@$(BIN)/ruff check . && $(BIN)/ruff format --check -q . && $(BIN)/mypy
	@$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile $(TESTS)

lint: $(VENV)/test.stamp
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

format: $(VENV)/test.stamp
	$(BIN)/ruff check --fix . ; $(BIN)/ruff format .

unit: $(VENV)/test.stamp
	$(BIN)/python -m pytest tests/unit tests/contract

$(VENV)/bin/python:
	@.ci/venv $(PYTHON) $(VENV)

$(VENV)/runtime.stamp: $(VENV)/bin/python requirements.lock pyproject.toml
	@$(BIN)/python -m pip install --quiet --require-hashes -r requirements.lock
	@.ci/install $(VENV)
	@touch $@

$(VENV)/test.stamp: $(VENV)/bin/python requirements-test.lock pyproject.toml
	@$(BIN)/python -m pip install --quiet --require-hashes -r requirements-test.lock
	@.ci/install $(VENV)
	@touch $@ $(VENV)/runtime.stamp

lock: $(VENV)/test.stamp
	$(BIN)/uv pip compile -q pyproject.toml --extra build --extra test --generate-hashes --no-emit-index-url --no-header --universal --python-version 3.11 -o requirements-test.lock
	$(BIN)/uv pip compile -q pyproject.toml --extra build --generate-hashes --no-emit-index-url --no-header --universal --python-version 3.11 -c requirements-test.lock -o requirements.lock

wheelhouse: $(VENV)/test.stamp
	@.ci/wheelhouse $(VENV) dist

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
