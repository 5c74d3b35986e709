# `make run` and `make test` do all of their own set-up, once.
PYTHON ?= python3
BIN := .venv/bin
LOCKED := images/locks/constraints.txt

.PHONY: run test test-host check install clean

run: .venv/.installed  ## the whole chain: text on disk to a tested assistant
	$(BIN)/glassworks build

test: .venv/.installed-test check  ## style, types, import rules, then the tests
	$(BIN)/python -m pytest -m "not host"

test-host: .venv/.installed-test  ## the tests that want root: containers, network namespaces, killed services, a browser
	$(BIN)/python -m pytest -m host $(ONLY)

check: .venv/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

install: .venv/.installed

# torch comes first and pinned: another package's loose requirement would fetch a newer one with its CUDA packages.
# The versions are those that the images are locked to, so that processes and containers make the same artifacts.
.venv/.installed: pyproject.toml $(LOCKED)
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint $(LOCKED) torch==2.13.0
	$(BIN)/python -m pip install --quiet --constraint $(LOCKED) --editable '.[all]'
	touch $@

.venv/.installed-test: .venv/.installed
	$(BIN)/python -m pip install --quiet --constraint $(LOCKED) --editable '.[all,test]'
	touch $@

clean:  ## the environment and the caches; artifacts stay
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .import_linter_cache *.egg-info
