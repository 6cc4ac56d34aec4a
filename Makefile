# The two commands of the README, and what they stand on. Everything lives in .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: demo test lint bench clean check-tools

demo: $(INSTALLED)
	$(BIN)/patterning-fast demo

test: $(INSTALLED)
	$(BIN)/ruff check python tests bench
	$(BIN)/ruff format --check python tests bench
	$(BIN)/mypy
	$(BIN)/python -m pytest

# Peak memory at 50 and at 500 draws.
bench: $(INSTALLED)
	$(BIN)/python -m bench.memory

clean:
	rm -rf $(VENV) build .pytest_cache .mypy_cache .ruff_cache

# Says in one line what is missing, before pip or CMake say it in a hundred.
check-tools:
	@command -v $(PYTHON) >/dev/null || { echo "error: $(PYTHON) is not installed: install Python 3.11 or newer, or name one with make PYTHON=..."; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: $$($(PYTHON) --version) is too old: install Python 3.11 or newer, or name one with make PYTHON=..."; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { echo "error: $(PYTHON) lacks venv: install it (on Debian: apt install python3-venv)"; exit 1; }
	@command -v "$${CXX:-c++}" >/dev/null || { echo "error: no C++ compiler ($${CXX:-c++}): install g++ or clang++ (on Debian: apt install g++)"; exit 1; }

$(INSTALLED): pyproject.toml CMakeLists.txt constraints.txt $(shell find csrc -type f) | check-tools
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	PIP_CONSTRAINT=$(CURDIR)/constraints.txt $(BIN)/python -m pip install --quiet --editable '.[test]'
	touch $@
